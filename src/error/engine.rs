//! Why the engine refuses a request or ends it.
//!
//! **Invariant:** one variant a defect, each with what was expected and found, and what to do.

/// What becomes of a request that is not served, or of an engine that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineDefect {
    /// A request was not done by its deadline.
    #[error("the deadline has passed; ask again with more time, or when less is asked for")]
    DeadlinePassed,
    /// The engine ended while somebody waited for it.
    #[error("the engine has stopped; start another")]
    Stopped,
    /// The weights did not move to where this request and others of the same step belong.
    #[error("the weights could not move to the node: {why}")]
    SwitchFailed {
        /// What the switch ended with.
        why: String,
    },
    /// Work for a request broke off.
    #[error("the work broke off with a panic: {panic}")]
    Panicked {
        /// What it said.
        panic: String,
    },
    /// A thread could not be started.
    #[error("a thread could not be started: {source}")]
    Thread {
        /// What the operating system said.
        source: std::io::Error,
    },
    /// More requests are in work than may be.
    #[error("{waiting} requests are in work already, {limit} may be; ask again once some are done")]
    QueueFull {
        /// Requests in work.
        waiting: usize,
        /// Most that may.
        limit: usize,
    },
    /// A request that all pages of keys and values together do not hold.
    #[error(
        "the request may come to hold {needed} pages of keys and values, there are {limit}; shorten the prompt, ask for fewer tokens, or give keys and values more memory"
    )]
    TooLarge {
        /// Pages it would hold with its prompt and all its tokens.
        needed: usize,
        /// Pages there are.
        limit: usize,
    },
    /// A job of a name that is in work.
    #[error("job {id} is in work already; give each a number of its own")]
    Repeated {
        /// The job.
        id: u64,
    },
    /// A job at a node whose cost nobody has put into the scheduler's table.
    #[error(
        "nothing is known of what node version {serial} costs; add it with `Scheduler::nodes` first"
    )]
    UnknownNodeCost {
        /// The version's serial number.
        serial: u64,
    },
    /// A bound of the scheduler within which nothing could run.
    #[error("engine option {name} is {found}, expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// What would do.
        expected: String,
        /// Its value.
        found: String,
    },
}
