//! End to end: both programs run as a user runs them, between real servers and real clients.

#![allow(unreachable_pub, reason = "a test target has no outside")]

#[path = "../support/mod.rs"]
mod support;

mod pack_job;
mod program;

mod access;
mod adoption;
mod again;
mod attached;
mod ca;
mod catalog;
mod cli;
mod clients;
mod configuration;
mod console;
mod damage;
mod deltas;
mod docs;
mod documents;
mod environment;
mod fetch;
mod frozen;
mod hostile;
mod image;
mod images;
mod internal;
mod kill;
mod kubespray;
mod limits;
mod links;
mod media;
mod names;
mod networks;
mod ownership;
mod policy;
mod private;
mod provenance;
mod receive;
mod registry_api;
mod release;
mod resume;
mod sbom;
mod second_reader;
mod secure;
mod serve;
mod settings;
mod signatures;
mod site;
mod slow;
mod targets;
mod transport;
mod types;
mod volumes;
