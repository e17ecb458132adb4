//! The ownership check of a unit: a command that fails if another user can change what the unit runs.

use std::path::Path;

use crate::conf::plain_path::PlainPath;
use crate::conf::quote::Text;
use crate::conf::quote::systemd::{Systemd, path};
use crate::conf::template::fill;

/// The value of `ExecStartPre=`. systemd runs it with full privileges (`+`), outside of the sandbox of the unit.
/// `$$` is a dollar sign (systemd.service(5)). In a directory with the sticky bit, other users cannot replace
/// what root owns.
const COMMAND: &str = "+/bin/sh -c 'bad=$$(find @PARENTS@ -prune \"(\" ! -user 0 -o ! -type l ! \"(\" -type d -perm \
                       -1000 \")\" -perm /022 \")\" && find @CONF@ \"(\" -type l -o ! -user 0 -o -perm /022 \")\") && [ \
                       -z \"$$bad\" ] || { echo \"refused, because another user can change this, or it is a \
                       symlink:\" $$bad >&2; exit 1; }'";

/// The value of `ExecStartPre=` for a registry, which follows links in its storage with its own rights.
const STORAGE_COMMAND: &str = "+/bin/sh -c 'bad=$$(find @STORAGE@ ! -type f ! -type d) && [ -z \"$$bad\" ] || { echo \
                               \"refused, because this is a symlink or a special file:\" $$bad >&2; exit 1; }'";

/// Returns the value of `ExecStartPre=` that checks the storage of a registry.
#[must_use]
pub(crate) fn storage_command(storage: &PlainPath) -> Text<Systemd> {
    fill(STORAGE_COMMAND, &[("STORAGE", path(storage))])
}

/// Returns the value of `ExecStartPre=` for a unit that runs `program` with the configuration `conf`. It is in
/// the unit, because a script in `conf` could be changed like the rest of it.
#[must_use]
pub(crate) fn command(conf: &PlainPath, program: &PlainPath) -> Text<Systemd> {
    let mut parents: Vec<&Path> = program.ancestors().chain(conf.ancestors().skip(1)).collect();
    parents.sort();
    parents.dedup();
    let parents = parents.into_iter().map(|parent| {
        path(&PlainPath::new(parent.into()).expect("parents of plain paths are plain; please report"))
    });
    fill(COMMAND, &[("PARENTS", Text::join(parents, " ")), ("CONF", path(conf))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_checked_once_and_the_configuration_entirely() {
        let command = command(&PlainPath::fixed("/srv/site/conf"), &PlainPath::fixed("/usr/sbin/nginx"));
        let command = command.as_str();
        let (parents, tree) = command.split_once(" && ").unwrap();
        assert!(
            parents.starts_with(
                "+/bin/sh -c 'bad=$$(find / /srv /srv/site /usr /usr/sbin /usr/sbin/nginx -prune "
            ),
            "{parents}"
        );
        assert!(tree.starts_with("find /srv/site/conf \"(\" -type l"), "{tree}");
        assert!(!command.contains(['\\', '%', '\n']) && command.matches('\'').count() == 2, "{command}");
    }
}
