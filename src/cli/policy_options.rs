//! Checks that every verb obeys the signature policy of the host, unless it is known to read no bundle.

use clap::{Command, CommandFactory as _};

use crate::cli::airbundle::Airbundle;
use crate::cli::unbundle::Unbundle;

/// The verbs that read neither a bundle nor a site. `receive` copies frames, and reads no document in them.
const OTHERS: [&str; 5] = [
    "airbundle lock",
    "airbundle lists",
    "airbundle keygen",
    "airbundle lists kubespray",
    "unbundle receive",
];

#[test]
fn every_verb_that_reads_a_bundle_or_a_site_has_the_options_of_the_signature_policy() {
    let mut verbs = Vec::new();
    for program in [Airbundle::command(), Unbundle::command()] {
        let name = program.get_name().to_owned();
        collect(&name, &program, &mut verbs);
    }
    let has = |verb: &Command, long: &str| verb.get_arguments().any(|arg| arg.get_long() == Some(long));
    let has_policy = |verb: &Command| has(verb, "trusted-key") && has(verb, "require-signatures");
    for (name, verb) in &verbs {
        assert_eq!(has_policy(verb), !OTHERS.contains(&name.as_str()), "{name}");
        let values = verb.get_arguments().filter_map(|arg| arg.get_value_names()).flatten();
        let reads = values.into_iter().any(|value| value == "BUNDLE" || value == "SITE")
            || verb.get_arguments().any(|arg| arg.is_positional() && arg.get_id() == "site");
        assert!(!reads || has_policy(verb), "{name} reads a bundle or a site");
    }
    assert!(OTHERS.iter().all(|other| verbs.iter().any(|(name, _)| name == other)));
}

fn collect(name: &str, command: &Command, verbs: &mut Vec<(String, Command)>) {
    for verb in command.get_subcommands() {
        let name = format!("{name} {}", verb.get_name());
        verbs.push((name.clone(), verb.clone()));
        collect(&name, verb, verbs);
    }
}
