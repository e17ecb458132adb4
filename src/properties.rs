//! Property tests: laws of documents and bundles, with values that proptest generates.
//!
//! The fuzz targets have inputs that are almost valid. These tests have valid values, and compare what comes out with
//! what went in.

mod bundles;
mod documents;
mod values;
