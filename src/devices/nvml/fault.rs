//! What NVML's errors mean here. The wrapper's error can't be kept or compared, so it is translated at once.

use nvml_wrapper::error::NvmlError;

#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// Not on this device or with this driver: absent, never asked again.
    Absent,
    /// The device fell off the bus.
    Lost,
    /// The device wants a reset before anything else.
    ResetRequired,
    /// A list grew between the count and the data.
    Grew,
    /// The library or the driver as a whole: everything must be opened again.
    Driver(String),
    /// This time only, for all we know.
    Failed(String),
}

impl From<NvmlError> for Fault {
    fn from(error: NvmlError) -> Fault {
        match error {
            NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::NotFound
            | NvmlError::UnexpectedVariant(_) => Fault::Absent,
            NvmlError::GpuLost => Fault::Lost,
            NvmlError::ResetRequired => Fault::ResetRequired,
            NvmlError::InsufficientSize(_) => Fault::Grew,
            NvmlError::Uninitialized
            | NvmlError::LibRmVersionMismatch
            | NvmlError::DriverNotLoaded
            | NvmlError::LibraryNotFound
            | NvmlError::LibloadingError(_) => Fault::Driver(words(&error)),
            other => Fault::Failed(words(&other)),
        }
    }
}

/// For people, with what to do where something can be done.
pub(super) fn words(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            let cause = match error {
                NvmlError::LibloadingError(source) => source_of(source),
                _ => String::new(),
            };
            format!("libnvidia-ml.so.1 can't be loaded{cause} (it comes with the NVIDIA driver)")
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver isn't loaded".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver and its library have different versions: reload the driver, or reboot".to_owned()
        }
        NvmlError::Uninitialized => "the NVIDIA driver was reloaded".to_owned(),
        NvmlError::NoPermission => "no permission to talk to the NVIDIA driver".to_owned(),
        other => format!("NVML: {other}"),
    }
}

/// The loader's own words, which name the library and what is wrong with it.
fn source_of(error: &dyn std::error::Error) -> String {
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    format!(": {}", crate::item::escape(cause.as_bytes()))
}
