//! Opens regular files, and nothing else.
//!
//! **Invariant:** what is not a regular file is refused before it is opened: opening a named pipe
//! waits for whoever writes to it, and opening a device may do something. What was opened is looked
//! at again, since a name may change hands between.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::path::Path;

use crate::{Error, Result};

/// Opens the regular file that `path` leads to, for reading, and returns its length in bytes.
///
/// # Errors
/// [`Error::NotAFile`], and [`Error::Io`].
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |error| Error::io(path, error);
    check(path, &std::fs::metadata(path).map_err(io)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Where a pipe took the file's place meanwhile, this returns at once.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = match options.open(path) {
        // A file that a server of files has leased: it goes back to who waits, and no pipe
        // answers so.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            File::open(path).map_err(io)?
        }
        opened => opened.map_err(io)?,
    };
    let metadata = file.metadata().map_err(io)?;
    check(path, &metadata)?;
    Ok((file, metadata.len()))
}

fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::NotAFile { path: path.to_owned(), found: kind(metadata.file_type()) })
}

/// What is there in place of a file, in words.
fn kind(found: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        for (is_it, word) in [
            (found.is_fifo(), "a named pipe"),
            (found.is_socket(), "a socket"),
            (found.is_char_device(), "a device"),
            (found.is_block_device(), "a disk"),
        ] {
            if is_it {
                return word;
            }
        }
    }
    if found.is_dir() { "a folder" } else { "something else" }
}
