//! The ownership check of a unit: a command that fails if another user can change what the unit runs.

use std::collections::BTreeSet;
use std::path::Path;

/// Returns the value of `ExecStartPre=` for a unit that runs `program` with the configuration `conf`. Both are
/// absolute paths of letters, digits and `._+@/-`.
///
/// systemd runs it with full privileges (`+`), outside of the sandbox of the unit. The command is in the unit,
/// because a script in `conf` could be changed like the rest of it. `$$` is a dollar sign (systemd.service(5)).
#[must_use]
pub(crate) fn command(conf: &Path, program: &Path) -> String {
    let parents: BTreeSet<&Path> = program.ancestors().chain(conf.ancestors().skip(1)).collect();
    let parents: Vec<String> = parents.into_iter().map(|path| path.display().to_string()).collect();
    // In a directory with the sticky bit, other users cannot replace what root owns.
    format!(
        "+/bin/sh -c 'bad=$$(find {parents} -prune \"(\" ! -user 0 -o ! -type l ! \"(\" -type d -perm -1000 \")\" -perm \
         /022 \")\" && find {conf} \"(\" -type l -o ! -user 0 -o -perm /022 \")\") && [ -z \"$$bad\" ] || {{ echo \
         \"refused, because another user can change this, or it is a symlink:\" $$bad >&2; exit 1; }}'",
        parents = parents.join(" "),
        conf = conf.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_checked_once_and_the_configuration_entirely() {
        let command = command(Path::new("/srv/site/conf"), Path::new("/usr/sbin/nginx"));
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
