//! What a process that CRIU has restored is told: arguments, environment, working directory, and the
//! caller's descriptors.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use restore_plan::{GREETING, Layout};

use crate::sys::caller::borrow_inherited;

/// Our end of the socket, and everything that is to go through it.
pub(super) struct Orders {
    socket: OwnedFd,
    greeting: Vec<u8>,
    head: Vec<u8>,
    strings: File,
    directory: Option<OwnedFd>,
    descriptors: Vec<RawFd>,
}

/// What the orders are made of.
pub(super) struct Message<'a> {
    /// `argv`.
    pub(super) arguments: &'a [CString],
    /// The environment.
    pub(super) environment: &'a [CString],
    /// As the plan has it.
    pub(super) layout: Layout,
    /// Signals that the caller ignores.
    pub(super) ignored: u64,
    /// `OPTION_` bits of the plan crate.
    pub(super) options: u64,
    /// What the numbers of processes and threads were, and what they are now.
    pub(super) numbers: Vec<[u32; 2]>,
    /// The number that the other end will have.
    pub(super) number: u32,
    /// The descriptors to be handed on, ascending.
    pub(super) descriptors: Vec<RawFd>,
    /// The working directory.
    pub(super) directory: Option<OwnedFd>,
}

impl Orders {
    /// Gets everything ready; returns the other end of the socket too.
    pub(super) fn prepare(message: Message<'_>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            // A read takes one packet, and the descriptors of the next ones stay where they are.
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let mut strings = File::from(memfd_create(c"orders", MFdFlags::MFD_CLOEXEC)?);
        let arguments = write_strings(&mut strings, message.arguments)?;
        let environment = write_strings(&mut strings, message.environment)?;
        let numbers = message.numbers.iter().flatten().flat_map(|number| number.to_le_bytes());
        strings.write_all(&numbers.collect::<Vec<u8>>())?;
        let orders = restore_plan::Orders {
            arguments: message.arguments.len() as u64,
            argument_bytes: arguments,
            environment: message.environment.len() as u64,
            environment_bytes: environment,
            numbers: message.numbers.len() as u64,
            descriptors: message.descriptors.len() as u64,
            ignored: message.ignored,
            options: message.options,
            layout: message.layout,
        };
        let prepared = Self {
            socket: ours,
            greeting: [GREETING.to_le_bytes(), message.number.to_le_bytes()].concat(),
            head: orders.to_bytes().to_vec(),
            strings,
            directory: message.directory,
            descriptors: message.descriptors,
        };
        Ok((prepared, theirs))
    }

    /// Sends everything; `EPIPE` where the process has ended.
    pub(super) fn send(self) -> io::Result<()> {
        let socket = self.socket.as_fd();
        send(socket, &self.greeting, &[])?;
        let mut files = vec![self.strings.as_raw_fd()];
        files.extend(self.directory.iter().map(AsRawFd::as_raw_fd));
        send(socket, &self.head, &files)?;
        for number in &self.descriptors {
            let descriptor = borrow_inherited(*number);
            let number = u64::from(number.cast_unsigned());
            send(socket, &number.to_le_bytes(), &[descriptor.as_raw_fd()])?;
        }
        Ok(())
    }
}

fn write_strings(file: &mut File, strings: &[CString]) -> io::Result<u64> {
    let bytes: Vec<u8> =
        strings.iter().flat_map(|text| text.to_bytes_with_nul()).copied().collect();
    file.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(packet)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// A number for a descriptor that is not among those that are taken: the wanted one, if it is free.
pub(super) fn free_number(wanted: u32, taken: &[u32]) -> u32 {
    let free = |number: &u32| !taken.contains(number);
    if free(&wanted) { wanted } else { (3..=u32::MAX).find(free).unwrap_or(wanted) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_number_is_free_or_the_next_one_that_is() {
        assert_eq!(free_number(202, &[0, 1, 2]), 202);
        assert_eq!(free_number(202, &[0, 1, 2, 3, 202]), 4);
    }

    #[test]
    fn strings_follow_each_other_with_their_ends() {
        let (orders, theirs) = Orders::prepare(Message {
            arguments: &[c"a".into(), c"".into()],
            environment: &[c"B=1".into()],
            layout: Layout::default(),
            ignored: 4,
            options: 1,
            numbers: vec![[1, 2]],
            number: 202,
            descriptors: Vec::new(),
            directory: None,
        })
        .expect("orders");
        let mut strings = [0; 15];
        orders.strings.read_exact_at(&mut strings, 0).expect("they were written");
        assert_eq!(&strings, b"a\0\0B=1\0\x01\0\0\0\x02\0\0\0");
        orders.send().expect("somebody listens");
        let mut end = File::from(theirs);
        let mut packet = [0; 512];
        assert_eq!(end.read(&mut packet).expect("a greeting"), 8);
        assert_eq!(packet[4], 202);
        assert_eq!(end.read(&mut packet).expect("the orders"), size_of::<restore_plan::Orders>());
        assert_eq!(packet[0], 2);
        assert_eq!(end.read(&mut packet).expect("the end"), 0);
    }
}
