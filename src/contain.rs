//! Work that a library does on what others wrote: a panic there becomes an error, and stays off
//! stderr.
//!
//! **Invariant:** nothing that a broken-off piece of work may have changed is used again; a panic
//! of any other thread, or of this one outside such work, is reported as ever.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether this thread does contained work.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it is given back as its message.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // The hook runs before the panic is caught, so it is what would write to stderr.
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                report(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("no reason given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_messages_also_one_within_another() {
        assert_eq!(contained(|| 1), Ok(1));
        assert_eq!(contained(|| -> u8 { panic!("a {}", 1) }), Err("a 1".to_owned()));
        let both = contained(|| (contained(|| -> u8 { panic!("inner") }), CONTAINED.get()));
        assert_eq!(both, Ok((Err("inner".to_owned()), true)));
        assert!(!CONTAINED.get(), "outside, panics are reported again");
    }
}
