//! Which file a command's first word means: as a shell would find it, but in the environment and the folder the process
//! will have, not in the director's.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where programs are looked for when the environment doesn't say.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The file to run, relative to `cwd` if it is relative; or why there is none.
pub(crate) fn find<'a>(program: &'a OsStr, env: &[(OsString, OsString)], cwd: &Path) -> Result<Cow<'a, Path>, String> {
    if program.is_empty() {
        return Err("the command is empty".to_owned());
    }
    // With a slash it is a path; whether it exists shows when it is run.
    if program.as_bytes().contains(&b'/') {
        return Ok(Cow::Borrowed(Path::new(program)));
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
    let candidates = path.as_bytes().split(|byte| *byte == b':').map(|folder| {
        // An empty entry is the folder the process starts in.
        let folder = if folder.is_empty() { b"." } else { folder };
        Path::new(OsStr::from_bytes(folder)).join(program)
    });
    let mut not_runnable: Option<PathBuf> = None;
    for candidate in candidates {
        let there = cwd.join(&candidate);
        if !there.metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        if rustix::fs::access(&there, rustix::fs::Access::EXEC_OK).is_ok() {
            return Ok(Cow::Owned(candidate));
        }
        not_runnable.get_or_insert(candidate);
    }
    let show = |text: &OsStr| crate::item::escape(text.as_bytes());
    Err(match not_runnable {
        Some(file) => format!("`{}` may not be executed", show(file.as_os_str())),
        None => format!("the program `{}` is in none of the folders of PATH (`{}`)", show(program), show(path)),
    })
}

/// The same, looked at: a file that may be executed.
pub(crate) fn runnable(program: &OsStr, env: &[(OsString, OsString)], cwd: &Path) -> Result<PathBuf, String> {
    let found = find(program, env, cwd)?.into_owned();
    let (there, shown) = (cwd.join(&found), crate::item::escape(program.as_bytes()));
    match std::fs::metadata(&there) {
        Err(error) => Err(format!("cannot start `{shown}`: {error}")),
        Ok(meta) if meta.is_dir() => Err(format!("cannot start `{shown}`: it is a directory")),
        Ok(_) => match rustix::fs::access(&there, rustix::fs::Access::EXEC_OK) {
            Err(_) => Err(format!("`{shown}` may not be executed")),
            Ok(()) => Ok(found),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn programs_are_found_in_the_environments_path() {
        let dir = tempfile::tempdir().unwrap();
        let cwd = dir.path();
        for (name, mode) in [("bin/tool", 0o755), ("data/tool", 0o644), ("data/notes", 0o644), ("here", 0o755)] {
            fs::create_dir_all(cwd.join(name).parent().unwrap()).unwrap();
            fs::write(cwd.join(name), "").unwrap();
            fs::set_permissions(cwd.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(cwd.join("data/folder")).unwrap();
        let check = |program: &str, path: Option<&str>, expected: Result<&str, &str>| {
            let env: Vec<(OsString, OsString)> = path.iter().map(|path| ("PATH".into(), path.into())).collect();
            match (find(OsStr::new(program), &env, cwd), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(&*found, Path::new(expected)),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        };
        check("tool", Some("bin"), Ok("bin/tool"));
        check("tool", Some("data:bin"), Ok("bin/tool"));
        check("here", Some("/nonexistent::bin"), Ok("./here"));
        check("here", Some("bin"), Err("none of the folders of PATH (`bin`)"));
        check("notes", Some("data"), Err("`data/notes` may not be executed"));
        check("folder", Some("data"), Err("none"));
        check("./anything", Some("data"), Ok("./anything"));
        check("", Some("bin"), Err("empty"));
        let check = |program: &str, words: &str| {
            let found = runnable(OsStr::new(program), &[], cwd);
            assert!(found.as_ref().err().map_or(words.is_empty(), |why| why.contains(words)), "{program}: {found:?}");
        };
        check("bin/tool", "");
        check("sh", "");
        check("bin/none", "cannot start `bin/none`: No such file");
        check("./bin", "cannot start `./bin`: it is a directory");
        check("data/notes", "`data/notes` may not be executed");
        check("a\0/b", "cannot start `a\\u{0}/b`");
        assert!(find(OsStr::new("sh"), &[], cwd).is_ok());
    }
}
