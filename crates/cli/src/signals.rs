//! What a command does when a signal asks it to end: it tidies up, and ends with the status that
//! shells know.

/// The exit status of who was ended by a signal is this and its number.
#[cfg(unix)]
const BY_SIGNAL: i32 = 128;

/// From now on SIGINT, SIGTERM and SIGHUP remove what this process has begun and not finished
/// before they end it, with status 130, 143 or 129. One that was ignored when the program began, as
/// with `nohup`, stays so.
#[cfg(unix)]
pub(super) fn tidy_up_when_told_to_end() -> anyhow::Result<()> {
    use anyhow::Context;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let heeded = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
    let mut signals =
        signal_hook::iterator::Signals::new(heeded).context("cannot wait for signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            pleach::store::abandon_unfinished();
            std::process::exit(BY_SIGNAL + signal);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("cannot wait for signals")?;
    Ok(())
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "there is no other way to ask")]
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action nothing is changed, and the old one is written to a place of its
    // size and alignment.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: a call that succeeded has written it.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// The other systems have no such signals.
#[cfg(not(unix))]
pub(super) fn tidy_up_when_told_to_end() -> anyhow::Result<()> {
    Ok(())
}

/// Waits for SIGINT or SIGTERM, those that were not ignored when the program began; a second one ends
/// it at once. Until then `again` is called at each SIGHUP.
#[cfg(all(unix, feature = "serve"))]
pub(super) fn told_to_end(
    again: impl Fn() + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()>> {
    use anyhow::Context;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let heeded = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
    let mut signals =
        signal_hook::iterator::Signals::new(heeded).context("cannot wait for signals")?;
    let (told, heard) = tokio::sync::oneshot::channel();
    let wait = move || {
        let mut told = Some(told);
        for signal in signals.forever() {
            match (signal, told.take()) {
                (SIGHUP, waiting) => {
                    again();
                    told = waiting;
                }
                // Who does not wait any more is ending already.
                (_, Some(told)) => drop(told.send(())),
                (signal, None) => std::process::exit(BY_SIGNAL + signal),
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).context("cannot wait for signals")?;
    Ok(async {
        // Where all signals are ignored nobody tells.
        if heard.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// The same by Ctrl-C; there is no SIGHUP.
#[cfg(all(not(unix), feature = "serve"))]
pub(super) fn told_to_end(
    _again: impl Fn() + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
