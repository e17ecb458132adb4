//! [`Ca`]: a private certificate authority.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// A private CA, trusted only where its certificate is named.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = named("An authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("generate a key");
        let pem = params.self_signed(&key).expect("sign a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its certificate to a new file `name` in `directory`.
    pub fn file(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, &self.pem).expect("write a certificate");
        path
    }

    /// Issues a certificate for a server with these names, as `NAME.crt` and `NAME.key` in `directory`.
    pub fn server(&self, directory: &Path, name: &str, names: &[&str]) -> Pair {
        self.issue(directory, name, &named(name, names))
    }

    /// Issues an expired server certificate.
    pub fn expired(&self, directory: &Path, name: &str, names: &[&str]) -> Pair {
        let mut params = named(name, names);
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        self.issue(directory, name, &params)
    }

    /// Issues a client certificate.
    pub fn client(&self, directory: &Path, name: &str) -> Pair {
        let mut params = named(name, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(directory, name, &params)
    }

    fn issue(&self, directory: &Path, name: &str, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("generate a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let [certificate_file, key_file] = ["crt", "key"].map(|end| directory.join(format!("{name}.{end}")));
        fs::write(&certificate_file, certificate.pem()).expect("write a certificate");
        fs::write(&key_file, key.serialize_pem()).expect("write a key");
        Pair { certificate: certificate_file, key: key_file }
    }
}

fn named(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("valid subject names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
