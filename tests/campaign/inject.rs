//! A program under ptrace: the n-th of the chosen system calls of all its threads fails, transfers fewer bytes, or is
//! its last one.
//!
//! The campaign starts itself as the tracer, which starts itself as the tracee and becomes the program there. A filter
//! (seccomp) stops the program at the calls of interest only.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use serde::{Deserialize, Serialize};

use crate::calls::{CALLS, Call, OPENS, Object};
use crate::support::process::append_command;

/// First argument of the tracer, and of the tracee.
pub const TRACER: &str = "--tracer";
pub const TRACEE: &str = "--tracee";

/// A fault at one call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Injection {
    /// Names of the calls that count.
    pub calls: Vec<String>,
    /// The call at which the fault happens, from 1; 0 for none.
    pub number: u64,
    pub action: Action,
    /// All later calls have the fault too.
    pub lasting: bool,
    /// Calls that open a file count only if the file can be written.
    pub only_writing: bool,
    /// Calls count if they are about a path below one of these.
    pub below: Vec<PathBuf>,
}

/// The fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Kill,
    /// The call is not made and returns this error number.
    Error(i32),
    /// At most half of the bytes are transferred.
    Short,
}

/// The calls that the tracer saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Number of calls that counted.
    pub count: u64,
    /// Name and path of the first call with the fault.
    pub hit: Option<String>,
}

/// Returns the command that runs `program` with the fault and writes [`Seen`] to `log`.
pub fn command(injection: &Injection, log: &Path, program: &Command) -> Command {
    let itself = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(itself);
    command.arg(TRACER).arg(log).arg(serde_json::to_string(injection).expect("JSON"));
    append_command(&mut command, program);
    command
}

/// Reads what the tracer wrote.
pub fn seen(log: &Path) -> Seen {
    let text = fs::read_to_string(log).unwrap_or_else(|error| panic!("read {}: {error}", log.display()));
    serde_json::from_str(&text).expect("the JSON of the tracer")
}

/// Becomes the program of these arguments (injection, program, its arguments), with the parent as its tracer.
pub fn become_tracee(arguments: &[String]) -> ! {
    let [injection, program, arguments @ ..] = arguments else { panic!("INJECTION PROGRAM [ARGUMENT…]") };
    let injection: Injection = serde_json::from_str(injection).expect("an injection");
    ptrace::traceme().expect("be traced");
    raise(Signal::SIGSTOP).expect("stop for the tracer");
    apply_filter(&injection.filter()).expect("apply the filter");
    let error = Command::new(program).args(arguments).exec();
    panic!("start {program}: {error}");
}

impl Injection {
    /// Returns a filter that stops a thread at each call that may count.
    fn filter(&self) -> BpfProgram {
        let is_chosen = |call: &&Call| self.calls.iter().any(|name| name == call.name);
        // Calls without a file count after the first call with one.
        let all = CALLS.iter().filter(is_chosen).any(|call| matches!(call.object, Object::Nothing));
        let stops = CALLS.iter().filter(|call| all || is_chosen(call)).map(|call| (call.number, Vec::new()));
        let filter = SeccompFilter::new(
            stops.collect(),
            SeccompAction::Allow,
            SeccompAction::Trace(0),
            TargetArch::x86_64,
        );
        filter.and_then(BpfProgram::try_from).expect("a filter")
    }
}

/// Runs the program of these arguments (log, injection, program, its arguments) and returns its exit code, or 128 and
/// the number of the signal that ended it.
pub fn run_tracer(arguments: &[String]) -> ExitCode {
    let [log, arguments @ ..] = arguments else { panic!("LOG INJECTION PROGRAM [ARGUMENT…]") };
    let injection: Injection = serde_json::from_str(&arguments[0]).expect("an injection");
    let itself = std::env::current_exe().expect("the path of this program");
    #[allow(clippy::zombie_processes, reason = "`Tracer::run` waits")]
    let child = Command::new(itself).arg(TRACEE).args(arguments).spawn().expect("start the tracee");
    let child = Pid::from_raw(child.id().try_into().expect("a process ID"));
    waitpid(child, None).expect("wait for the tracee");
    let options = Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options).expect("set the options of the tracer");
    ptrace::cont(child, None).expect("start the tracee");
    let mut tracer = Tracer {
        injection,
        child,
        log: log.into(),
        is_started: false,
        is_in_use: false,
        seen: Seen::default(),
    };
    let code = tracer.run();
    tracer.write_log();
    ExitCode::from(code)
}

struct Tracer {
    injection: Injection,
    child: Pid,
    log: PathBuf,
    /// The tracee has become the program.
    is_started: bool,
    /// The program has used one of the paths, so that its start is over.
    is_in_use: bool,
    seen: Seen,
}

impl Tracer {
    fn run(&mut self) -> u8 {
        let mut code = 0;
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL)) {
            match status {
                WaitStatus::Exited(pid, status) if pid == self.child => {
                    code = u8::try_from(status).expect("an exit code");
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.child => {
                    code = 128 + u8::try_from(signal as i32).expect("a signal");
                }
                WaitStatus::PtraceEvent(thread, _, event) => {
                    match event {
                        libc::PTRACE_EVENT_EXEC => self.is_started = true,
                        libc::PTRACE_EVENT_SECCOMP => self.stopped_at_call(thread),
                        _ => {}
                    }
                    resume(thread, None);
                }
                // The first stop of a new thread.
                WaitStatus::Stopped(thread, Signal::SIGSTOP) if thread != self.child => resume(thread, None),
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal)),
                _ => {}
            }
        }
        code
    }

    fn stopped_at_call(&mut self, thread: Pid) {
        let Injection { number, lasting, action, .. } = self.injection;
        if number > 0 && !lasting && self.seen.count == number {
            return;
        }
        // A thread can end at any time.
        let Ok(mut registers) = ptrace::getregs(thread) else { return };
        if let Some((call, path)) = self.counted(thread, &registers) {
            self.seen.count += 1;
            let hits = self.seen.count == number || lasting && number > 0 && self.seen.count > number;
            let hits = hits && (action != Action::Short || call.length.is_some());
            if hits {
                self.seen.hit.get_or_insert_with(|| format!("{} {}", call.name, path.display()));
                match action {
                    Action::Kill => {
                        self.write_log();
                        let _ = kill(self.child, Signal::SIGKILL); // it may have ended
                        return;
                    }
                    Action::Error(error) => {
                        registers.orig_rax = u64::MAX;
                        registers.rax = i64::from(-error).cast_unsigned();
                    }
                    Action::Short => {
                        let length = argument_mut(&mut registers, call.length.expect("checked"));
                        *length = (*length).div_ceil(2);
                    }
                }
                let _ = ptrace::setregs(thread, registers); // it may have been killed
            }
        }
    }

    /// Returns the call and its path if it counts.
    fn counted(&mut self, thread: Pid, registers: &user_regs_struct) -> Option<(&'static Call, PathBuf)> {
        if !self.is_started {
            return None;
        }
        let number = registers.orig_rax.cast_signed();
        let call = CALLS.iter().find(|call| call.number == number)?;
        let path = match call.object {
            Object::Nothing => PathBuf::new(),
            Object::Descriptor(fd) => descriptor(thread, argument(registers, fd))?,
            Object::Path(path) => memory_text(thread, argument(registers, path))?.into(),
            Object::At(fd, path) => {
                let path = PathBuf::from(memory_text(thread, argument(registers, path))?);
                match descriptor(thread, argument(registers, fd)) {
                    Some(directory) => directory.join(path),
                    None => path,
                }
            }
        };
        let is_below = self.injection.below.iter().any(|root| path.starts_with(root));
        self.is_in_use |= is_below;
        let counts = match call.object {
            Object::Nothing => self.is_in_use,
            _ => is_below,
        };
        let is_chosen = self.injection.calls.iter().any(|name| name == call.name);
        let is_reading =
            self.injection.only_writing && OPENS.contains(&call.name) && !writes(thread, call, registers);
        (counts && is_chosen && !is_reading).then_some((call, path))
    }

    fn write_log(&self) {
        fs::write(&self.log, serde_json::to_vec(&self.seen).expect("JSON")).expect("write the log");
    }
}

fn resume(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::cont(thread, signal); // it may have been killed
}

fn argument(registers: &user_regs_struct, index: usize) -> u64 {
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9][index]
}

fn argument_mut(registers: &mut user_regs_struct, index: usize) -> &mut u64 {
    [
        &mut registers.rdi,
        &mut registers.rsi,
        &mut registers.rdx,
        &mut registers.r10,
        &mut registers.r8,
        &mut registers.r9,
    ]
    .into_iter()
    .nth(index)
    .expect("a call has six arguments")
}

/// Returns the path of an open file or directory; none for pipes, sockets and the like.
fn descriptor(thread: Pid, number: u64) -> Option<PathBuf> {
    let number = i32::try_from(number.cast_signed()).ok()?;
    let path = fs::read_link(format!("/proc/{thread}/fd/{number}")).ok()?;
    path.is_absolute().then_some(path)
}

/// True if the call opens a file for writing.
fn writes(thread: Pid, call: &Call, registers: &user_regs_struct) -> bool {
    let flags = match call.name {
        "open" => registers.rsi,
        "openat" => registers.rdx,
        _ => {
            let mut bytes = [0; 8];
            let read =
                memory(thread).is_some_and(|file| file.read_exact_at(&mut bytes, registers.rdx).is_ok());
            if read { u64::from_le_bytes(bytes) } else { 0 }
        }
    };
    let mask = libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR;
    flags & u64::from(mask.cast_unsigned()) != 0
}

fn memory(thread: Pid) -> Option<File> {
    File::open(format!("/proc/{thread}/mem")).ok()
}

/// Reads a text that ends with a zero byte.
fn memory_text(thread: Pid, address: u64) -> Option<String> {
    const PAGE: usize = 4096;
    let file = memory(thread)?;
    let mut text = Vec::new();
    // Up to the end of a page, since the next one may not exist.
    while text.len() < PAGE {
        let at = address + text.len() as u64;
        let rest = PAGE as u64 - at % PAGE as u64;
        let mut bytes = vec![0; usize::try_from(rest).expect("less than a page")];
        let length = file.read_at(&mut bytes, at).ok()?;
        if let Some(end) = bytes[..length].iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&bytes[..end]);
            return String::from_utf8(text).ok();
        }
        text.extend_from_slice(&bytes[..length]);
    }
    None
}
