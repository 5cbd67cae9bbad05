//! Whether this host has NVIDIA hardware that NVML ought to answer for.

use std::fs;
use std::path::{Path, PathBuf};

/// A path of the host's `/sys` or `/proc`. Builds with debug assertions take `GAMDOK_SYSFS` as another root, so that a
/// test can describe a host.
pub(super) fn path(absolute: &str) -> PathBuf {
    if cfg!(debug_assertions)
        && let Some(root) = std::env::var_os("GAMDOK_SYSFS")
    {
        return Path::new(&root).join(absolute.trim_start_matches('/'));
    }
    absolute.into()
}

/// The NVIDIA GPUs that PCI lists and NVML could drive, or that the kernel module speaks of.
pub(super) fn has_nvidia_gpu() -> bool {
    pci_gpus(&path("/sys/bus/pci/devices")) > 0 || module_gpus(&path("/proc/driver/nvidia/gpus"))
}

fn module_gpus(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

fn pci_gpus(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter(|entry| is_usable_gpu(&entry.path())).count()
}

/// Vendor NVIDIA, class display controller. One given to a virtual machine or to another driver is not NVML's.
fn is_usable_gpu(dir: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let driver = fs::read_link(dir.join("driver")).unwrap_or_default();
    let elsewhere = ["vfio-pci", "pci-stub", "nouveau", "nova"].iter().any(|name| driver.ends_with(name));
    read("vendor").trim() == "0x10de" && read("class").starts_with("0x03") && !elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nvidias_display_controllers_count() {
        let check = |vendor: &str, class: &str, driver: Option<&str>, expected: usize| {
            let dir = tempfile::tempdir().unwrap();
            let device = dir.path().join("0000:01:00.0");
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
            fs::write(device.join("class"), class).unwrap();
            if let Some(driver) = driver {
                std::os::unix::fs::symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver"))
                    .unwrap();
            }
            assert_eq!(pci_gpus(dir.path()), expected, "{vendor} {class} {driver:?}");
        };
        check("0x10de\n", "0x030200\n", Some("nvidia"), 1);
        check("0x10de\n", "0x030000\n", None, 1);
        check("0x10de\n", "0x040300\n", None, 0);
        check("0x1002\n", "0x030000\n", Some("amdgpu"), 0);
        check("0x10de\n", "0x030000\n", Some("vfio-pci"), 0);
        check("0x10de\n", "0x030000\n", Some("nouveau"), 0);
        assert_eq!(pci_gpus(Path::new("/nonexistent")), 0);
    }
}
