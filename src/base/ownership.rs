//! Ownership: whether only root can change a file, so that root can run it.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use crate::base::fs::FsError;

/// Maximum number of symlinks on a path, as in Linux (`path_resolution(7)`).
const LINK_LIMIT: u32 = 40;

/// The reason why root does not run a file.
#[derive(Debug, thiserror::Error)]
pub enum ForeignFile {
    /// Another user owns the file, or a directory on the way to it.
    #[error(
        "`{path}` belongs to user ID {owner}, who can change what root runs: check its content, then run `chown root \
         {path}`", path = path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// The user ID of its owner.
        owner: u32,
    },
    /// The group or all users can write to the file, or to a directory on the way to it.
    #[error(
        "`{path}` is writable by other users, who can change what root runs: check its content, then run `chmod go-w \
         {path}`", path = .0.display()
    )]
    Writable(PathBuf),
    /// A socket, FIFO or device.
    #[error("`{}` is neither a file nor a directory", .0.display())]
    Special(PathBuf),
    /// The path has too many symlinks.
    #[error("`{}` has too many levels of symlinks", .0.display())]
    Loop(PathBuf),
    /// The path cannot be examined.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// Checks that only root can change `path`: root owns the file or directory, each of its parents up to `/`,
/// and each symlink on the way, and no one else can write to them. A parent with the sticky bit, such as
/// `/tmp`, is accepted, because other users cannot replace what root owns there.
pub fn check(path: &Path) -> Result<(), ForeignFile> {
    let absolute = std::path::absolute(path).map_err(FsError::at("find", path))?;
    let mut rest = components(&absolute);
    let mut here = PathBuf::from("/");
    check_entry(&here, &metadata(&here)?, true)?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(name);
        let metadata = metadata(&next)?;
        if !metadata.is_symlink() {
            check_entry(&next, &metadata, !rest.is_empty())?;
            here = next;
            continue;
        }
        check_owner(&next, &metadata)?;
        links += 1;
        if links > LINK_LIMIT {
            return Err(ForeignFile::Loop(path.to_owned()));
        }
        let target = fs::read_link(&next).map_err(FsError::at("read", &next))?;
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    Ok(())
}

/// Checks a directory with [`check`], and everything in it.
pub fn check_tree(directory: &Path) -> Result<(), ForeignFile> {
    check(directory)?;
    for entry in WalkDir::new(directory).min_depth(1) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(directory).to_owned();
            FsError::at("read", path)(error.into())
        })?;
        let metadata = metadata(entry.path())?;
        if metadata.is_symlink() {
            check(entry.path())?;
        } else {
            check_entry(entry.path(), &metadata, false)?;
        }
    }
    Ok(())
}

/// Returns the names in `path`, last first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    names.collect()
}

fn metadata(path: &Path) -> Result<Metadata, FsError> {
    fs::symlink_metadata(path).map_err(FsError::at("examine", path))
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), ForeignFile> {
    match metadata.uid() {
        0 => Ok(()),
        owner => Err(ForeignFile::Owner { path: path.to_owned(), owner }),
    }
}

fn check_entry(path: &Path, metadata: &Metadata, is_parent: bool) -> Result<(), ForeignFile> {
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(ForeignFile::Special(path.to_owned()));
    }
    check_owner(path, metadata)?;
    let is_sticky_parent = is_parent && metadata.mode() & 0o1000 != 0;
    if metadata.mode() & 0o022 != 0 && !is_sticky_parent {
        return Err(ForeignFile::Writable(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_path_that_another_user_can_change_is_refused_by_name() {
        if !rustix::process::geteuid().is_root() {
            return; // nothing belongs to root
        }
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("conf/units")).unwrap();
        fs::write(at("conf/units/script"), "true").unwrap();
        symlink("conf/units/script", at("link")).unwrap();
        let text = |result: Result<(), ForeignFile>| result.map_err(|error| error.to_string()).unwrap_err();
        let script = at("conf/units/script");
        for path in [&script, &at("link"), &at("conf/../link")] {
            check(path).unwrap();
        }
        check_tree(&at("conf")).unwrap();

        for (name, mode) in [("conf/units/script", 0o664), ("conf/units", 0o757), ("conf", 0o775)] {
            let before = metadata(&at(name)).unwrap().mode();
            set_mode(&at(name), mode);
            let words = format!("`chmod go-w {}`", at(name).display());
            for path in [&script, &at("link")] {
                assert!(text(check(path)).contains(&words), "{name}");
            }
            assert!(text(check_tree(&at("conf"))).contains(&words), "{name}");
            set_mode(&at(name), before);
        }
        for name in ["conf/units/script", "conf/units", "conf"] {
            chown(at(name), Some(4711), None).unwrap();
            let words = format!("`{}` belongs to user ID 4711", at(name).display());
            assert!(text(check(&script)).starts_with(&words), "{name}");
            assert!(text(check_tree(&at("conf"))).starts_with(&words), "{name}");
            chown(at(name), Some(0), None).unwrap();
        }
        // A sticky parent is safe; a sticky directory is not, because other users can add files.
        set_mode(&at("conf"), 0o1777);
        check(&script).unwrap();
        assert!(matches!(check_tree(&at("conf")), Err(ForeignFile::Writable(_))));
        set_mode(&at("conf"), 0o755);
        // The target of a link counts, and so does the link.
        fs::write(at("mine"), "true").unwrap();
        chown(at("mine"), Some(4711), None).unwrap();
        symlink(at("mine"), at("conf/link")).unwrap();
        assert!(text(check_tree(&at("conf"))).contains("mine` belongs to"));
        fs::remove_file(at("conf/link")).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(4711), None).unwrap();
        assert!(text(check(&at("link"))).contains("link` belongs to"));
        symlink("circle", at("circle")).unwrap();
        assert!(matches!(check(&at("circle")), Err(ForeignFile::Loop(_))));
        assert!(matches!(check(&at("missing")), Err(ForeignFile::Fs(_))));
        assert!(matches!(check(Path::new("/dev/null")), Err(ForeignFile::Special(_))));
    }
}
