//! What several test files share.

pub mod golden;
pub mod made;
