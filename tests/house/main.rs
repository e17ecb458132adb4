//! The house: structure, language and documentation. No test here starts a server or a program.

mod console;
mod docs;
mod language;
mod reads;
mod sources;
mod structure;
