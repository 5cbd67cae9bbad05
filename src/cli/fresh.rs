//! A file that a command writes for somebody: whole under its name or not at all, and never over what is there unless
//! that was asked for.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::trouble::{Trouble, exit};
use crate::root::shown;

pub(super) struct Fresh {
    path: PathBuf,
    force: bool,
    file: BufWriter<NamedTempFile>,
}

impl Fresh {
    /// Begins beside its name, where it is seen only once it is whole.
    pub(super) fn create(path: &Path, force: bool) -> Result<Fresh, Trouble> {
        if !force && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        if path.is_dir() {
            let message = format!("`{}` is a folder", shown(path));
            return Err(Trouble::new(exit::USAGE, "usage", message, "name a file in it"));
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // As the umask has it, like any other file.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let file = builder.prefix(".gamdok-").suffix(".part").permissions(permissions).tempfile_in(folder);
        let file = file.map_err(|error| unwritable(path, &error))?;
        Ok(Fresh { path: path.to_owned(), force, file: BufWriter::with_capacity(1 << 16, file) })
    }

    /// Puts it in its place.
    pub(super) fn finish(self) -> Result<(), Trouble> {
        let Fresh { path, force, file } = self;
        let file = file.into_inner().map_err(|error| unwritable(&path, error.error()))?;
        let placed = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
        match placed {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(exists(&path)),
            Err(error) => Err(unwritable(&path, &error.error)),
        }
    }

    /// A failure to write it, as a trouble that names it.
    pub(super) fn trouble(&self, error: &io::Error) -> Trouble {
        unwritable(&self.path, error)
    }
}

impl io::Write for Fresh {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn exists(path: &Path) -> Trouble {
    let message = format!("`{}` exists already", shown(path));
    Trouble::new(exit::FAILED, "exists", message, "name another file, or replace it with `--force`")
}

fn unwritable(path: &Path, error: &io::Error) -> Trouble {
    let message = format!("cannot write `{}`: {error}", shown(path));
    Trouble::new(exit::FAILED, "io", message, "look at its folder's permissions and space, or name another file")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn nothing_is_overwritten_unless_asked_and_nothing_half_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("r\n.html");
        let write = |force: bool, text: &str| -> Result<(), Trouble> {
            let mut file = Fresh::create(&path, force)?;
            file.write_all(text.as_bytes()).expect("written");
            file.finish()
        };
        let read = || std::fs::read_to_string(&path).expect("the file");
        write(false, "one").expect("written");
        let (code, word, message) = write(false, "two")
            .map_err(|it| (it.parts().0, it.parts().1.to_owned(), it.message().to_owned()))
            .expect_err("refused");
        assert_eq!((code, word.as_str(), read().as_str()), (1, "exists", "one"));
        assert!(message.contains(r"r\n.html"), "{message}");
        // Another came meanwhile.
        std::fs::remove_file(&path).expect("removed");
        let file = Fresh::create(&path, false).expect("begun");
        std::fs::write(&path, "theirs").expect("written");
        assert_eq!(file.finish().expect_err("refused").parts().1, "exists");
        assert_eq!(read(), "theirs");
        write(true, "three").expect("replaced");
        drop(Fresh::create(&path, true).expect("begun"));
        assert_eq!((read().as_str(), std::fs::read_dir(dir.path()).expect("it").count()), ("three", 1));
        assert_eq!(Fresh::create(dir.path(), true).err().expect("refused").parts().0, 2);
        assert_eq!(Fresh::create(&dir.path().join("no/f"), true).err().expect("refused").parts().1, "io");
    }
}
