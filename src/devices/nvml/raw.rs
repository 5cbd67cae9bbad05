//! The two queries that the wrapper doesn't offer.

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};

/// `(total, used)` of drivers before R510; `used` includes what the driver reserves.
#[expect(unsafe_code, reason = "the wrapper asks for the second version of this structure only")]
pub(super) fn memory_v1(device: &Device<'_>) -> Result<(u64, u64), NvmlError> {
    let query = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    // SAFETY: the handle belongs to the library that is asked, and the structure, three plain numbers, outlives the call.
    unsafe {
        let mut memory = std::mem::zeroed();
        nvml_try(query(device.handle(), &mut memory))?;
        Ok((memory.total, memory.used))
    }
}

/// What became of remapped rows.
pub(super) struct RemappedRows {
    pub(super) pending: bool,
    pub(super) failed: bool,
}

#[expect(unsafe_code, reason = "the wrapper doesn't offer this query")]
pub(super) fn remapped_rows(device: &Device<'_>) -> Result<RemappedRows, NvmlError> {
    let query = nvml_sym(device.nvml().lib().nvmlDeviceGetRemappedRows.as_ref())?;
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the handle belongs to the library that is asked, and the four numbers outlive the call.
    unsafe { nvml_try(query(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed))? };
    Ok(RemappedRows { pending: pending != 0, failed: failed != 0 })
}
