//! Facts of the embedded broker alone.
