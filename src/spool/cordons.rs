//! `.gamdok/cordons.json`: the devices that a hand took out, so that a restart doesn't take them back in. Replaced as a
//! whole, and durable before the command that changed it is answered.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::record;
use crate::devices::DeviceId;
use crate::root::RootError;

const NAME: &str = "cordons.json";
const FRESH: &str = "cordons.json.tmp";

/// The devices that are cordoned by hand, read from the `.gamdok` folder. Without the file there are none; a file that
/// says nothing sensible is an error, since leaving it aside would give out a device that somebody took out.
pub fn read(state: &Path) -> Result<Vec<DeviceId>, RootError> {
    let path = state.join(NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&path, &error)),
    };
    serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &error))
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> RootError {
    let path = crate::root::shown(path);
    RootError::unavailable(
        format!("cannot read the cordoned devices in `{path}`: {error}"),
        "remove the file if no device is to stay out, and cordon again those that are",
    )
}

pub(super) fn write(root: impl AsFd, devices: &[DeviceId]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let state = rustix::fs::openat(root, ".gamdok", flags, Mode::empty())?;
    // Ids are plain text: this can't fail.
    let bytes = serde_json::to_vec(devices).map_err(|_| Errno::INVAL)?;
    let file = record::write(&state, FRESH, &bytes)?;
    rustix::fs::fdatasync(file)?;
    rustix::fs::renameat(&state, FRESH, &state, NAME)?;
    rustix::fs::fsync(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cordons_are_read_back_and_nonsense_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(".gamdok");
        std::fs::create_dir(&state).unwrap();
        assert_eq!(read(&state).unwrap(), []);
        let root = std::fs::File::open(dir.path()).unwrap();
        let devices = [DeviceId("GPU-1".into()), DeviceId("MIG-2".into())];
        write(&root, &devices).unwrap();
        assert_eq!(read(&state).unwrap(), devices);
        write(&root, &[]).unwrap();
        assert_eq!(read(&state).unwrap(), []);
        std::fs::write(state.join(NAME), "{").unwrap();
        assert_eq!(read(&state).unwrap_err().exit_code(), 5);
    }
}
