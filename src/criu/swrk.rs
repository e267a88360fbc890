//! The connection to a `criu swrk`: one request, one answer, each a message of CRIU's RPC in one
//! packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{Criu_req, Criu_req_type, Criu_resp};

use super::find::search_path;
use super::guard::guard;
use crate::sys::spawn::{Privileges, Running, Spawn};

/// The number of the connection's descriptor in CRIU's process.
const CONNECTION: i32 = 200;
/// The number of the descriptor of the directory for the image, if there is one.
const DIRECTORY: i32 = 201;
/// The numbers of the two descriptors that a restored process is made of: the socket of its orders,
/// and the image.
pub(super) const ORDERS: i32 = 202;
pub(super) const IMAGE: i32 = 203;
/// That directory as CRIU finds it. The name of the directory itself will not do: CRIU 4.1 reads
/// it as a symbolic link and fails if it is none.
pub(super) const DIRECTORY_PATH: &str = "/proc/self/fd/201";
/// The longest answer that CRIU gives is an error message of 1 KiB.
const ANSWER: usize = 64 * 1024;

/// Our end of the connection.
#[derive(Debug)]
pub struct Worker {
    socket: OwnedFd,
}

/// How long CRIU may be silent where something has disturbed it, in milliseconds.
const PATIENCE: u16 = 10_000;

impl Worker {
    /// Both ends of a connection: ours, and the one for the program of [`Worker::program`].
    ///
    /// # Errors
    ///
    /// The kernel's reason, for want of descriptors.
    pub fn connect() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // A request holds a few paths; a long one must not be cut by the default size.
        setsockopt(&ours, sockopt::SndBuf, &(4 * ANSWER))?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The program to be started with two descriptors, the other end and the directory for the image,
    /// and the one that is returned. It reads no configuration file and keeps what it knows about the
    /// kernel in `runtime`.
    ///
    /// # Errors
    ///
    /// The kernel's reason why there is no such descriptor.
    pub fn program(criu: &Path, runtime: Option<&Path>) -> io::Result<(Spawn, OwnedFd)> {
        let mut program = Self::unguarded(criu, runtime);
        program.descriptors.push(DIRECTORY);
        let guard = guard(&mut program)?;
        Ok((program, guard))
    }

    fn unguarded(criu: &Path, runtime: Option<&Path>) -> Spawn {
        let mut environment = Vec::new();
        if let Some(runtime) = runtime {
            environment.push(("XDG_RUNTIME_DIR".into(), runtime.into()));
        }
        environment.push(("PATH".into(), search_path()));
        let connection = CONNECTION.to_string();
        let arguments = ["criu", "--no-default-config", "swrk", &connection];
        Spawn {
            program: criu.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment,
            descriptors: vec![CONNECTION],
            privileges: Privileges::Checkpoint,
        }
    }

    /// Starts a CRIU of our own, and connects to it.
    ///
    /// # Errors
    ///
    /// The kernel's reason why it cannot be executed.
    pub fn start(criu: &Path) -> io::Result<(Self, Running)> {
        let (worker, theirs) = Self::connect()?;
        let mut program = Self::unguarded(criu, None);
        let guard = guard(&mut program)?;
        let running = Running::start(&program, vec![theirs, guard])?;
        Ok((worker, running))
    }

    /// Starts the program of [`Worker::program`] with the directory of the files, the socket of the
    /// orders and the image, and connects to it: what it restores is our child.
    ///
    /// # Errors
    ///
    /// The kernel's reason why it cannot be executed.
    pub fn restorer(
        criu: &Path,
        runtime: Option<&Path>,
        [files, orders, image]: [OwnedFd; 3],
    ) -> io::Result<(Self, Running)> {
        let (worker, theirs) = Self::connect()?;
        let mut program = Self::unguarded(criu, runtime);
        program.descriptors.extend([DIRECTORY, ORDERS, IMAGE]);
        let guard = guard(&mut program)?;
        let running = Running::start(&program, vec![theirs, files, orders, image, guard])?;
        Ok((worker, running))
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// `EPIPE` or `ECONNRESET` where CRIU has ended.
    pub fn send(&self, request: &Criu_req) -> io::Result<()> {
        let packet = request.write_to_bytes()?;
        let parts = [IoSlice::new(&packet)];
        loop {
            match sendmsg::<()>(self.raw(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// The answer, waited for; `None` where CRIU has ended instead. A notification on the way is
    /// acknowledged.
    ///
    /// # Errors
    ///
    /// The kernel's reason, or that the packet is no message of CRIU's.
    pub fn receive(&self) -> io::Result<Option<Criu_resp>> {
        self.receive_noting(None, |_| {}, &|| false)
    }

    /// As [`Worker::receive`]; `note` is called with the name of each notification (criu.org/RPC,
    /// "Notifications"), and CRIU waits until it has returned. `process` can be read when CRIU has
    /// ended: its end of the connection may outlive it in processes that it has started. Where CRIU has
    /// said nothing for ten seconds, `disturbed` says whether to wait no longer.
    ///
    /// # Errors
    ///
    /// As [`Worker::receive`], and `TimedOut`.
    pub fn receive_noting(
        &self,
        process: Option<BorrowedFd<'_>>,
        mut note: impl FnMut(&str),
        disturbed: &dyn Fn() -> bool,
    ) -> io::Result<Option<Criu_resp>> {
        while self.says_more(process, disturbed)?
            && let Some(answer) = self.packet()?
        {
            if answer.type_() != Criu_req_type::NOTIFY {
                return Ok(Some(answer));
            }
            note(answer.notify.script());
            match self.acknowledge() {
                // It has ended meanwhile: its status says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                acknowledged => acknowledged?,
            }
        }
        Ok(None)
    }

    /// Waits until there is something to be received, or the process has ended.
    fn says_more(
        &self,
        process: Option<BorrowedFd<'_>>,
        disturbed: &dyn Fn() -> bool,
    ) -> io::Result<bool> {
        let Some(process) = process else { return Ok(true) };
        let [line, process] = [self.as_fd(), process].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut polled = [line, process];
        loop {
            match poll(&mut polled, PollTimeout::from(PATIENCE)) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(0) if disturbed() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) => {}
                Ok(_) => return Ok(polled[0].any().unwrap_or(true)),
            }
        }
    }

    /// As [`Worker::receive`], for so many milliseconds.
    ///
    /// # Errors
    ///
    /// Also `TimedOut`.
    pub fn receive_within(&self, milliseconds: u16) -> io::Result<Option<Criu_resp>> {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut polled, PollTimeout::from(milliseconds)) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return self.receive(),
            }
        }
    }

    fn acknowledge(&self) -> io::Result<()> {
        let mut request = Criu_req::new();
        request.set_type(Criu_req_type::NOTIFY);
        request.set_notify_success(true);
        self.send(&request)
    }

    fn packet(&self) -> io::Result<Option<Criu_resp>> {
        let mut packet = vec![0; ANSWER];
        let mut parts = [IoSliceMut::new(&mut packet)];
        let length = loop {
            match recvmsg::<()>(self.raw(), &mut parts, None, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno.into()),
                Ok(received) => break received.bytes,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some(Criu_resp::parse_from_bytes(&packet[..length])?))
    }

    fn raw(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Worker {
    /// Readable when CRIU has answered, or has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, OwnedFd};

    use protobuf::Message;
    use rust_criu::rust_criu_protobuf::rpc::{Criu_req, Criu_req_type, Criu_resp};

    use super::Worker;

    fn answer(kind: Criu_req_type) -> Vec<u8> {
        let mut answer = Criu_resp::new();
        answer.set_type(kind);
        answer.set_success(true);
        answer.write_to_bytes().expect("a whole message")
    }

    /// The other end, one packet a call.
    fn file(end: OwnedFd) -> std::fs::File {
        end.into()
    }

    #[test]
    fn notifications_are_acknowledged_and_the_answer_returned() {
        let (worker, end) = Worker::connect().expect("a socket pair");
        let mut end = file(end);
        end.write_all(&answer(Criu_req_type::NOTIFY)).expect("a packet");
        end.write_all(&answer(Criu_req_type::DUMP)).expect("a packet");
        let got = worker.receive().expect("an answer").expect("no end of file");
        assert_eq!(got.type_(), Criu_req_type::DUMP);
        let mut packet = [0; 64];
        let length = end.read(&mut packet).expect("the acknowledgement");
        let request = Criu_req::parse_from_bytes(&packet[..length]).expect("a request");
        assert_eq!(request.type_(), Criu_req_type::NOTIFY);
        assert!(request.notify_success());
    }

    #[test]
    fn the_end_of_criu_is_no_answer() {
        let (worker, end) = Worker::connect().expect("a socket pair");
        drop(end);
        assert!(worker.receive().expect("end of file is no error").is_none());
        assert!(worker.send(&Criu_req::new()).is_err());
    }

    #[test]
    fn the_end_of_criu_is_noticed_though_somebody_holds_its_connection() {
        let (worker, end) = Worker::connect().expect("a socket pair");
        let (ended, process) = std::io::pipe().expect("a pipe");
        let mut held = file(end);
        held.write_all(&answer(Criu_req_type::RESTORE)).expect("a packet");
        drop(process);
        let last =
            worker.receive_noting(Some(ended.as_fd()), |_| {}, &|| false).expect("the last word");
        assert_eq!(last.expect("it was said before").type_(), Criu_req_type::RESTORE);
        assert!(
            worker
                .receive_noting(Some(ended.as_fd()), |_| {}, &|| false)
                .expect("no error")
                .is_none()
        );
        drop(held);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (worker, end) = Worker::connect().expect("a socket pair");
        file(end).write_all(b"\xff\xff\xff").expect("a packet");
        assert!(worker.receive().is_err());
    }
}
