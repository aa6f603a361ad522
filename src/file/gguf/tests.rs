//! The reader against made files, sound and hostile.
