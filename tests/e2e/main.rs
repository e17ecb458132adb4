//! From lists to pulls, with both programs as a user starts them, real servers at both ends and real clients.

#[path = "../support/mod.rs"]
mod support;

mod program;

mod cli;
mod damage;
mod fetch;
mod kill;
mod serve;
