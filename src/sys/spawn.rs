//! Starts a process by the C library's `posix_spawn`. It never copies this process' memory (as `fork` does, which takes
//! tens of milliseconds in a big process), and it can hand over any descriptors, which the standard library's `Command`
//! can't without a fork.
//!
//! Invariants: the process leads a group of its own, all its signals are at their defaults and none is blocked, and it
//! has the descriptors it is given and no others.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::Pid;

use super::files;
use crate::item::escape;

/// A process to start; nothing left to decide.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The file to run; taken as it is, relative to `cwd`.
    pub program: &'a Path,
    /// With the program's name as the first.
    pub argv: &'a [OsString],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
    pub cwd: &'a Path,
    /// Become the descriptors 0, 1, 2 and so on. Theirs may be any numbers, and stay as they are here.
    pub descriptors: &'a [BorrowedFd<'a>],
}

impl Spawn<'_> {
    /// Starts it. The error is the first thing that failed, in here or in the new process before it ran its program.
    #[expect(unsafe_code, reason = "posix_spawn has no safe wrapper that passes descriptors on")]
    pub fn start(&self) -> io::Result<Pid> {
        let program = c_string(self.program.as_os_str())?;
        let cwd = c_string(self.cwd.as_os_str())?;
        let argv = Strings::collect(self.argv.iter().map(|word| [word.as_bytes(), b"", b""]))?;
        let env = Strings::collect(self.env.iter().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()]))?;
        let sources = Sources::lift(self.descriptors)?;

        let mut actions = Actions::new()?;
        actions.chdir(&cwd)?;
        for (target, source) in sources.numbers.iter().enumerate() {
            actions.dup2(*source, target as RawFd)?;
        }
        actions.close_from(sources.numbers.len() as RawFd)?;
        let attributes = Attributes::new()?;

        let mut pid: libc::pid_t = 0;
        let (argv, env) = (argv.pointers(), env.pointers());
        // SAFETY: every pointer lives until the call returns: the C strings and both NUL-terminated arrays are locals
        // above, the actions and attributes were initialised. The call copies nothing out but the pid.
        let error = unsafe {
            libc::posix_spawn(
                &mut pid,
                program.as_ptr(),
                &actions.0,
                &attributes.0,
                argv.as_ptr().cast::<*mut libc::c_char>(),
                env.as_ptr().cast::<*mut libc::c_char>(),
            )
        };
        check(error)?;
        let pid = Pid::from_raw(pid);
        pid.into_iter().for_each(files::restore_limit);
        pid.ok_or_else(|| io::Error::other("the C library started a process without a number"))
    }

    /// The words for a start that failed, and whose fault it is.
    pub fn why_not(&self, error: &io::Error) -> NotStarted {
        let show = |path: &Path| escape(path.as_os_str().as_encoded_bytes());
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let host = matches!(
            errno,
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::IO | Errno::TXTBSY | Errno::STALE)
        );
        let program = show(self.program);
        // The same number for a missing program, a missing interpreter and a missing folder.
        let because = if !self.cwd.is_dir() {
            format!("its folder `{}` isn't there (see `cwd`)", show(self.cwd))
        } else if errno == Some(Errno::NOEXEC) {
            "it is neither a program for this machine nor a script that begins with `#!`".to_owned()
        } else if errno == Some(Errno::NOENT) && self.cwd.join(self.program).exists() {
            "the interpreter that it names in its first line isn't there".to_owned()
        } else {
            error.to_string()
        };
        let unfit = matches!(errno, Some(Errno::NOENT | Errno::NOEXEC | Errno::ACCESS | Errno::NOTDIR | Errno::PERM));
        NotStarted { error: format!("cannot start `{program}`: {because}"), host, program: unfit }
    }
}

/// Why a process could not be started, and whose fault that is.
#[derive(Debug, PartialEq, Eq)]
pub struct NotStarted {
    pub error: String,
    /// The host's: no memory, no process slots. Else the route's: no such program.
    pub host: bool,
    /// The program can't run here, whatever it is given.
    pub program: bool,
}

impl NotStarted {
    /// By the host's fault.
    pub fn by_host(error: String) -> NotStarted {
        NotStarted { error, host: true, program: false }
    }
}

/// The numbers to copy from. Each lies above every target: a copy then neither overwrites a source that is still needed,
/// nor meets its own number, where it would leave close-on-exec as it is.
struct Sources {
    numbers: Vec<RawFd>,
    /// The lifted ones, open until the process has started.
    _lifted: Vec<OwnedFd>,
}

impl Sources {
    fn lift(descriptors: &[BorrowedFd]) -> io::Result<Sources> {
        let lowest = descriptors.len() as RawFd;
        let mut lifted = Vec::new();
        let mut numbers = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            if descriptor.as_raw_fd() >= lowest {
                numbers.push(descriptor.as_raw_fd());
            } else {
                let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, lowest)?;
                numbers.push(copy.as_raw_fd());
                lifted.push(copy);
            }
        }
        Ok(Sources { numbers, _lifted: lifted })
    }
}

/// C strings in one allocation.
struct Strings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Strings {
    fn collect<'a>(parts: impl Iterator<Item = [&'a [u8]; 3]>) -> io::Result<Strings> {
        let mut strings = Strings { bytes: Vec::with_capacity(4096), starts: Vec::with_capacity(64) };
        for part in parts {
            let start = strings.bytes.len();
            part.iter().for_each(|piece| strings.bytes.extend_from_slice(piece));
            if strings.bytes[start..].contains(&0) {
                return Err(nul(&strings.bytes[start..]));
            }
            strings.bytes.push(0);
            strings.starts.push(start);
        }
        Ok(strings)
    }

    /// One pointer each, and a null at the end; good for as long as `self` is.
    fn pointers(&self) -> Vec<*const libc::c_char> {
        let pointers = self.starts.iter().map(|start| self.bytes[*start..].as_ptr().cast());
        pointers.chain([ptr::null()]).collect()
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| nul(text.as_bytes()))
}

fn nul(text: &[u8]) -> io::Error {
    let shown = crate::item::escape(&text[..text.len().min(100)]);
    io::Error::new(io::ErrorKind::InvalidInput, format!("`{shown}` has a NUL byte, which no process can be given"))
}

/// The functions of `posix_spawn` return the error's number instead of setting `errno`.
fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// What the new process does before it runs its program.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    #[expect(unsafe_code, reason = "the C library initialises its own structure")]
    fn new() -> io::Result<Actions> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises the structure it points to, and it is read only after it said so.
        unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Actions(actions.assume_init()))
        }
    }

    #[expect(unsafe_code, reason = "part of posix_spawn")]
    fn chdir(&mut self, to: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised; the path is NUL-terminated, and copied by the call.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&mut self.0, to.as_ptr()) })
    }

    #[expect(unsafe_code, reason = "part of posix_spawn")]
    fn dup2(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised; numbers are all that is handed over.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from, to) })
    }

    /// Closes `lowest` and all above. Ours are close-on-exec anyway; a driver library's may not be. Where the C library
    /// has no such action, close-on-exec has to do.
    #[expect(unsafe_code, reason = "part of posix_spawn, where the C library has it")]
    fn close_from(&mut self, lowest: RawFd) -> io::Result<()> {
        let Some(close_from) = close_from_action() else { return Ok(()) };
        // SAFETY: the actions are initialised, and the function has this signature wherever it exists.
        check(unsafe { close_from(&mut self.0, lowest) })
    }
}

impl Drop for Actions {
    #[expect(unsafe_code, reason = "part of posix_spawn")]
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

type CloseFrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, libc::c_int) -> libc::c_int;

/// Looked up while running: glibc has it since 2.34 only, and a direct call would keep older ones from loading us at all.
#[expect(unsafe_code, reason = "a function that not every C library has")]
fn close_from_action() -> Option<CloseFrom> {
    static ACTION: OnceLock<Option<CloseFrom>> = OnceLock::new();
    *ACTION.get_or_init(|| {
        let name = c"posix_spawn_file_actions_addclosefrom_np";
        // SAFETY: a lookup by a NUL-terminated name among what is loaded. Whatever has this name is that function: the
        // prefix is the C library's own.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            (!found.is_null()).then(|| std::mem::transmute::<*mut libc::c_void, CloseFrom>(found))
        }
    })
}

/// How the new process stands: own group, default signals, none blocked.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    #[expect(unsafe_code, reason = "part of posix_spawn")]
    fn new() -> io::Result<Attributes> {
        let mut attributes = MaybeUninit::uninit();
        let (mut all, mut none) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        // SAFETY: each call initialises or fills in the structure it points to; they are used only after that, and the
        // signal sets are copied.
        unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            let mut attributes = Attributes(attributes.assume_init());
            libc::sigfillset(all.as_mut_ptr());
            libc::sigemptyset(none.as_mut_ptr());
            check(libc::posix_spawnattr_setflags(&mut attributes.0, flags as libc::c_short))?;
            check(libc::posix_spawnattr_setpgroup(&mut attributes.0, 0))?;
            check(libc::posix_spawnattr_setsigdefault(&mut attributes.0, all.as_ptr()))?;
            check(libc::posix_spawnattr_setsigmask(&mut attributes.0, none.as_ptr()))?;
            Ok(attributes)
        }
    }
}

impl Drop for Attributes {
    #[expect(unsafe_code, reason = "part of posix_spawn")]
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    /// Runs a shell script with its output in a file; answers the output and the exit code.
    fn sh(script: &str, extra: &[BorrowedFd]) -> (String, Option<i32>) {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut out = tempfile::tempfile().unwrap();
        let argv: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
        let mut descriptors = vec![null.as_fd(), out.as_fd(), out.as_fd()];
        descriptors.extend(extra);
        let env = [("PATH".into(), "/usr/bin:/bin".into()), ("ODD".into(), "a=b c\u{e4}".into())];
        let cwd = Path::new("/");
        let spawn = Spawn { program: Path::new("/bin/sh"), argv: &argv, env: &env, cwd, descriptors: &descriptors };
        let pid = spawn.start().unwrap();
        let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).unwrap().unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut out).unwrap();
        out.read_to_string(&mut text).unwrap();
        (text, status.exit_status())
    }

    #[test]
    fn a_process_gets_its_arguments_environment_folder_and_group() {
        let (text, code) = sh("echo \"$ODD\"; pwd; cut -d' ' -f1,5 /proc/$$/stat; exit 7", &[]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], code), ("a=b c\u{e4}", "/", Some(7)));
        let (pid, group) = lines[2].split_once(' ').unwrap();
        assert_eq!(pid, group);
    }

    #[test]
    fn it_has_the_descriptors_it_was_given_and_no_others() {
        // Also ones that aren't close-on-exec, as a careless library leaves them, at low and at high numbers.
        let careless = tempfile::tempfile().unwrap();
        let high = rustix::io::fcntl_dupfd_cloexec(&careless, 40).unwrap();
        rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
        rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty()).unwrap();
        let given = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        // In an order in which copying one number over another would lose something.
        let extra: Vec<BorrowedFd> = given.iter().rev().map(|file| file.as_fd()).collect();
        // `ls` itself opens the folder it lists, as the lowest free number.
        let (text, _) = sh("ls /proc/self/fd | tr '\\n' ' '", &extra);
        assert_eq!(text.trim(), "0 1 2 3 4 5 6");
    }

    #[test]
    fn descriptors_come_in_the_order_given_whatever_their_numbers() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        for (text, file) in ["three", "four", "five"].iter().zip(&files) {
            rustix::io::pwrite(file, &[text.as_bytes(), b"\n"].concat(), 0).unwrap();
        }
        let fds: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        assert_eq!(sh("cat <&3; cat <&4; cat <&5", &fds).0, "three\nfour\nfive\n");
        let fds = [fds[2], fds[0], fds[1]];
        for file in &files {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).unwrap();
        }
        assert_eq!(sh("cat <&3; cat <&4; cat <&5", &fds).0, "five\nthree\nfour\n");
    }

    #[test]
    fn signals_are_at_their_defaults() {
        // Rust ignores SIGPIPE for itself; ignored signals would be inherited.
        let (text, _) = sh("sed -nE 's/Sig(Blk|Ign):.//p' /proc/self/status", &[]);
        for mask in text.lines() {
            // The C library keeps 32 and 33 to itself, whatever they were inherited as.
            let ours = u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31);
            assert_eq!(ours, 0, "{text}");
        }
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn what_cannot_start_says_why() {
        let check = |program: &str, cwd: &str, argument: &str, kind: io::ErrorKind| {
            let argv = [program.into(), argument.into()];
            let (program, cwd) = (Path::new(program), Path::new(cwd));
            let error = Spawn { program, argv: &argv, env: &[], cwd, descriptors: &[] }.start().unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        };
        check("/nonexistent/program", "/", "", io::ErrorKind::NotFound);
        check("/etc/passwd", "/", "", io::ErrorKind::PermissionDenied);
        check("/bin/true", "/nonexistent", "", io::ErrorKind::NotFound);
        check("/bin/true", "/", "a\0b", io::ErrorKind::InvalidInput);
    }
}
