//! The few unsafe calls: what neither std nor rustix offers. Each stands behind a safe function that states why it is.

pub mod lease;
