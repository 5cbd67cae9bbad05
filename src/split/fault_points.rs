//! Named places where a test can end a run or the process, as a kill would. Outside tests they are nothing.

use std::io;

/// Every point, in the order of a run; all are passed on the thread that called it.
#[cfg(test)]
pub(super) const FAULT_POINTS: &[&str] =
    &["resume.verified", "merge.part", "merge.written", "merge.noted", "end.noted", "end.named"];

/// The point `name`: nothing, an error after which the run touches no file any more, or the end of the process.
#[inline]
pub(super) fn at(name: &'static str) -> io::Result<()> {
    #[cfg(test)]
    return armed::at(name);
    #[cfg(not(test))]
    {
        let _ = name;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod armed {
    use std::cell::RefCell;
    use std::io;

    #[derive(Clone, Copy, Debug)]
    pub(in crate::split) enum What {
        Fail,
        Kill,
    }

    thread_local! {
        /// The point, how many passes are left before it acts, and what it does.
        static ARMED: RefCell<Option<(String, u32, What)>> = const { RefCell::new(None) };
    }

    pub(in crate::split) fn arm(name: &str, passes: u32, what: What) {
        assert!(super::FAULT_POINTS.contains(&name), "{name} is listed");
        ARMED.set(Some((name.to_owned(), passes, what)));
    }

    pub(in crate::split) fn disarm() {
        ARMED.set(None);
    }

    pub(super) fn at(name: &'static str) -> io::Result<()> {
        assert!(super::FAULT_POINTS.contains(&name), "{name} is listed");
        ARMED.with_borrow_mut(|armed| match armed {
            Some((point, 0, what)) if point == name => {
                if let What::Kill = what {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                }
                *armed = None;
                Err(io::Error::other(format!("stopped at {name}")))
            }
            Some((point, passes, _)) if point == name => {
                *passes -= 1;
                Ok(())
            }
            _ => Ok(()),
        })
    }
}
