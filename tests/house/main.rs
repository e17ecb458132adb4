//! The house: structure, language and documentation. No test here starts a server or a program.

mod docs;
mod sources;
mod structure;
