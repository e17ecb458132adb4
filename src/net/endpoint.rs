//! [`Endpoint`]: one address at which something is requested.

/// One place where something may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Whether it has to be https or http; else that is found out.
    pub scheme: Option<&'static str>,
    /// With the port, if that is not the usual one.
    pub host: String,
    /// What it is called there, without a slash at its beginning.
    pub path: String,
    /// Whether any certificate will do, or plain http.
    pub insecure: bool,
    /// Whether it stands in for another place.
    pub is_mirror: bool,
}
