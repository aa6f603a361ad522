//! Models from the hub.
