//! Session tests under a virtual clock.
