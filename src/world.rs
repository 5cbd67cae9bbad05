//! world
pub(crate) mod fixtures;
