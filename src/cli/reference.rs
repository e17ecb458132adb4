//! Generates `docs/cli.md` from the command lines, the exit codes and the JSON types.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _, ValueEnum as _};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use crate::base::event::Event;
use crate::cli::airbundle::Airbundle;
use crate::cli::exit::Code;
use crate::cli::images::{ImageListing, LoadResult};
use crate::cli::inventory::InventorySummary;
use crate::cli::listing::Listing;
use crate::cli::lists::ListsSummary;
use crate::cli::lock::{Checked, Locked, MergedLock};
use crate::cli::progress::Progress;
use crate::cli::sign::{BundleSignature, SignedRevocations};
use crate::cli::site::SiteSummary;
use crate::cli::unbundle::Unbundle;
use crate::cli::unpack::MissingBlobs;
use crate::commands::image::ImageSummary;
use crate::commands::pack::summary::PackSummary;
use crate::commands::prune::summary::PruneSummary;
use crate::commands::receive::ReceiveSummary;
use crate::commands::repair::RepairSummary;
use crate::commands::unpack::summary::UnpackSummary;
use crate::commands::verify::Verdict;
use crate::documents::lock::Diff;

const PAGE: &str = "docs/cli.md";

const INTRODUCTION: &str = "# Command line

`airbundle` packs bundles. `unbundle` verifies, unpacks and serves them. `PROGRAM COMMAND --help` prints the same
descriptions, `-h` a short form of them. This page is generated from the programs.

If a command is interrupted, run it again: `pack` and `unpack` resume.
";

const EXIT_CODES: &str = "
If several codes apply, 14 and 15 take precedence, because nothing else is read if the signature is not accepted. Then
17, 7 and 16 follow, in this order. If a signal ends a program, the exit code is that of the signal.

Error messages are printed to stderr, each on a line that starts with `error:`. A line with advice may follow, which
starts with `hint:`. See [Troubleshooting](troubleshooting.md).
";

const JSON: &str = "
With `--json`, a command prints one JSON object per line to stdout. The last line is the result. `?` marks members that
can be absent.
";

const EVENTS: &str = "
Events have the member `event`. Commands that take long print them before the result, whose `event` is `summary`.
";

#[test]
fn the_page_of_the_command_line_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let expected = page();
    if std::fs::read_to_string(&path).is_ok_and(|text| text == expected) {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{PAGE} is stale: run `UPDATE_DOCS=1 cargo test --lib cli::reference` and review the difference"
    );
    std::fs::write(&path, expected).expect("write the page");
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for mut program in [Airbundle::command(), Unbundle::command()] {
        program.build();
        let name = program.get_name().to_owned();
        program.get_subcommands_mut().for_each(|command| section(&mut page, &name, command));
    }
    page += "\n## Exit codes\n\n| code | meaning |\n|---|---|\n";
    for code in Code::value_variants() {
        let value = code.to_possible_value().expect("no code is hidden");
        let meaning = value.get_help().expect("every code is documented").to_string();
        let _ = writeln!(page, "| {} | {} |", *code as u8, cell(&meaning));
    }
    page += EXIT_CODES;
    page += "\n## JSON output\n";
    page += JSON;
    results(&mut page);
    page += "\n### Events\n";
    page += EVENTS;
    events(&mut page);
    page
}

/// Writes the section of a command, or of its subcommands.
fn section(page: &mut String, parent: &str, command: &mut Command) {
    let name = format!("{parent} {}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    if command.has_subcommands() {
        command.get_subcommands_mut().for_each(|command| section(page, &name, command));
        return;
    }
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let about = command.get_long_about().or(command.get_about()).expect("every command is described");
    let about = sentence(&about.to_string());
    let period = if about.ends_with('.') { "" } else { "." };
    let _ = writeln!(page, "\n## {name}\n\n{about}{period}\n\n```text\n{usage}\n```");
    options(page, command);
}

/// Writes a table of arguments and options for each help heading.
fn options(page: &mut String, command: &Command) {
    let mut headings: Vec<Option<&str>> = vec![None];
    let arguments =
        || command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
    for argument in arguments() {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    for heading in headings {
        let title = heading.map_or_else(
            || "argument or option".into(),
            |heading| format!("{} option", heading.to_lowercase()),
        );
        let _ = writeln!(page, "\n| {title} | description | default |\n|---|---|---|");
        for argument in arguments().filter(|argument| argument.get_help_heading() == heading) {
            option(page, argument);
        }
    }
}

/// Writes the table row of an argument or option.
fn option(page: &mut String, argument: &Arg) {
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let help =
        argument.get_long_help().or(argument.get_help()).expect("every option is described").to_string();
    let (help, mut default) = split_default(&help);
    let mut text = sentence(&help);
    if argument.get_action().takes_values() {
        for value in argument.get_possible_values() {
            let help = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
            let _ = write!(text, "\n\n`{}`{help}", value.get_name());
        }
        let values = argument.get_default_values().iter().map(|value| value.display().to_string());
        default.extend(values);
    }
    let default = default.join(", ");
    let _ = writeln!(page, "| `{short}{argument}` | {} | {} |", cell(&text), cell(&default));
}

/// Splits `[default: …]` off a help text.
fn split_default(help: &str) -> (String, Vec<String>) {
    let Some((before, rest)) = help.split_once("[default: ") else { return (help.to_owned(), Vec::new()) };
    let (default, after) = rest.split_once(']').expect("a default ends with `]`");
    (format!("{}{after}", before.trim_end()), vec![default.to_owned()])
}

/// Ends the first paragraph with a period if others follow.
fn sentence(text: &str) -> String {
    match text.trim().split_once("\n\n") {
        Some((first, rest)) if !first.ends_with('.') => format!("{first}.\n\n{rest}"),
        _ => text.trim().to_owned(),
    }
}

/// Escapes text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let mut in_code = false;
        let mut escaped = String::new();
        for c in paragraph.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
            in_code ^= c == '`';
            if c == '|' || (!in_code && "*<>".contains(c)) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        escaped
    });
    paragraphs.collect::<Vec<_>>().join("<br>")
}

/// Writes the JSON results of all commands.
fn results(page: &mut String) {
    type Result = (&'static str, &'static str, bool, fn() -> Schema);
    let results: [Result; 20] = [
        ("airbundle pack", "", true, schema::<PackSummary>),
        ("airbundle lock", "", true, schema::<Locked>),
        ("airbundle lock --check", "", true, schema::<Checked>),
        ("airbundle lock --merge", "", true, schema::<MergedLock>),
        ("airbundle diff", "", false, schema::<Diff>),
        ("airbundle lists kubespray", "", true, schema::<ListsSummary>),
        ("airbundle image", "", true, schema::<ImageSummary>),
        ("airbundle sign", "", true, schema::<BundleSignature>),
        ("airbundle sign --revoke", "", true, schema::<SignedRevocations>),
        ("unbundle unpack", "", true, schema::<UnpackSummary>),
        ("unbundle unpack", ", if the site lacks blobs that a delta omits", true, schema::<MissingBlobs>),
        ("unbundle ls", "", false, schema::<Listing>),
        ("unbundle verify", "", true, schema::<Verdict>),
        ("unbundle repair", "", true, schema::<RepairSummary>),
        ("unbundle receive", "", true, schema::<ReceiveSummary>),
        ("unbundle site", "", false, schema::<SiteSummary>),
        ("unbundle images", "", false, schema::<ImageListing>),
        ("unbundle images --load", "", true, schema::<LoadResult>),
        ("unbundle inventory", "", true, schema::<InventorySummary>),
        ("unbundle prune", "", true, schema::<PruneSummary>),
    ];
    for (command, condition, has_events, schema) in results {
        let _ = writeln!(page, "\n### `{command} --json`{condition}\n\n{TABLE}");
        if has_events {
            let _ = writeln!(page, "| `event` | `\"summary\"` | |");
        }
        members(page, "", &schema().to_value());
    }
}

const TABLE: &str = "| member | type | description |\n|---|---|---|";

fn events(page: &mut String) {
    let _ = writeln!(page, "\n| event | member | type | description |\n|---|---|---|---|");
    let variants = schema::<Event>().to_value();
    let progress = schema::<Progress>().to_value();
    for variant in variants["oneOf"].as_array().expect("an enum") {
        let name = variant["properties"]["event"]["const"].as_str().expect("a tag");
        let variant = if name == "progress" { &progress } else { variant };
        let description = cell(variant["description"].as_str().unwrap_or_default());
        let _ = writeln!(page, "| `{name}` | | | {description} |");
        let mut rows = String::new();
        members(&mut rows, "", variant);
        for row in rows.lines().filter(|row| !row.starts_with("| `event` ")) {
            let _ = writeln!(page, "| {row}");
        }
    }
}

fn schema<T: JsonSchema>() -> Schema {
    let settings =
        SchemaSettings::default().for_serialize().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

/// Writes a row for each member of an object and, below it, for the members of the objects in it.
fn members(page: &mut String, prefix: &str, schema: &Value) {
    let variants = schema["oneOf"].as_array().map(Vec::as_slice).unwrap_or_default();
    if variants.iter().any(|variant| variant["properties"].is_object()) {
        return members(page, prefix, &merged(variants));
    }
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    // `properties` is sorted by name. `required` has the order of the type.
    let mut names: Vec<&str> = required.iter().filter_map(Value::as_str).collect();
    names.extend(
        properties.keys().map(String::as_str).filter(|name| !required.iter().any(|other| other == name)),
    );
    for name in names {
        let property = &properties[name];
        // An absent member is never `null`.
        let kind = type_name(property);
        let (optional, kind) = if required.iter().any(|other| other == name) {
            ("", kind.as_str())
        } else {
            ("?", kind.trim_end_matches(" or null"))
        };
        let member = format!("{prefix}{name}");
        let description = cell(property["description"].as_str().unwrap_or_default());
        let _ = writeln!(page, "| `{member}`{optional} | {kind} | {description} |");
        if property["items"].is_object() {
            members(page, &format!("{member}[]."), &property["items"]);
        } else {
            members(page, &format!("{member}."), property);
        }
    }
}

/// Merges the variants of an enum to one object. Its required members are those that all variants require.
fn merged(variants: &[Value]) -> Value {
    let mut properties = Map::new();
    for variant in variants {
        for (name, property) in variant["properties"].as_object().into_iter().flatten() {
            let mut property = property.clone();
            // The property of an externally tagged variant has the description of its type.
            if property.get("const").is_none()
                && variant["properties"].as_object().is_some_and(|all| all.len() == 1)
            {
                property["description"] = variant["description"].clone();
            }
            let Some(known) = properties.get_mut(name) else {
                properties.insert(name.clone(), property);
                continue;
            };
            if let Some(tag) = property.get("const") {
                let mut tags =
                    known["enum"].as_array().cloned().unwrap_or_else(|| vec![known["const"].clone()]);
                tags.push(tag.clone());
                *known = serde_json::json!({ "enum": tags });
            }
        }
    }
    let is_required = |variant: &Value, name: &str| {
        variant["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name))
    };
    let required: Vec<&String> =
        properties.keys().filter(|name| variants.iter().all(|variant| is_required(variant, name))).collect();
    serde_json::json!({ "required": required, "properties": properties })
}

fn type_name(schema: &Value) -> String {
    let values = |values: &[Value]| {
        let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
        values.join(", ")
    };
    if let Some(tag) = schema.get("const") {
        return values(std::slice::from_ref(tag));
    }
    if let Some(tags) = schema["enum"].as_array() {
        return values(tags);
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        let tags: Vec<Value> = variants.iter().filter_map(|variant| variant.get("const").cloned()).collect();
        return if tags.is_empty() { "object".to_owned() } else { values(&tags) };
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        return variants.iter().map(type_name).collect::<Vec<_>>().join(" or ");
    }
    if schema["items"].is_object() {
        return match type_name(&schema["items"]).as_str() {
            "string" => "strings".to_owned(),
            _ => "objects".to_owned(),
        };
    }
    match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        other => panic!("a type without a name: {other}; {schema}"),
    }
}
