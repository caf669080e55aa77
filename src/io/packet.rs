//! Frames of an interface as they are, for captures and for tests that must see every byte (packet(7)).
//!
//! A VLAN tag that the kernel keeps beside a frame is put back into it.

use std::ffi::CString;
use std::io::{self, Read};
use std::mem::{self, MaybeUninit};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A raw socket on one interface.
#[derive(Debug)]
pub struct PacketSocket(Socket);

/// A frame that passed the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub frame: Vec<u8>,
    /// This machine sent it.
    pub outgoing: bool,
}

/// A super-frame of 64 KiB and its headers.
pub const FRAME_MAX: usize = (64 << 10) + 256;
/// A capture must survive bursts, and whoever captures is root.
const RECEIVE_BUFFER: libc::c_int = 32 << 20;

impl PacketSocket {
    /// Opens a socket on an interface of the calling thread's namespace. It sees what passes from then on.
    pub fn open(ifname: &str) -> io::Result<Self> {
        let name = CString::new(ifname).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the name is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Without a protocol it hears nothing, so nothing of other interfaces comes before the bind.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // SAFETY: the storage is zeroed, larger than a sockaddr_ll and aligned for any address.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let address = storage.cast::<libc::sockaddr_ll>();
                (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
                (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
                (*address).sll_ifindex = index as libc::c_int;
                *length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }?;
        socket.bind(&address)?;
        Ok(Self(socket))
    }

    /// Opens a socket for whoever carries frames on to another interface: it hears what comes in only, and before each
    /// frame stands what the kernel left undone of it (sums, cutting: `virtio_net_hdr`, 10 bytes), as
    /// [`send`](Self::send) then wants it, too. VLAN tags that the kernel keeps beside a frame are lost.
    ///
    /// `wait`: how long [`recv_into`](Self::recv_into) waits.
    pub fn open_to_carry(ifname: &str, wait: Duration) -> io::Result<Self> {
        let socket = Self::open(ifname)?;
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
            set_option(&socket.0, libc::SOL_PACKET, option, 1)?;
        }
        socket.0.set_read_timeout(Some(wait))?;
        Ok(socket)
    }

    /// The next frame, of a socket [opened to carry](Self::open_to_carry); `None` if none came.
    pub fn recv_into<'b>(&self, buffer: &'b mut [u8; FRAME_MAX]) -> io::Result<Option<&'b [u8]>> {
        match (&self.0).read(buffer) {
            Ok(count) => Ok(Some(&buffer[..count])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame from destination address to the end of the payload.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// The next frame; `None` if none came within `timeout`.
    pub fn recv(&self, timeout: Duration) -> io::Result<Option<Captured>> {
        self.0.set_read_timeout(Some(timeout.max(Duration::from_micros(1))))?;
        let mut frame = vec![0; FRAME_MAX];
        let mut control = [0_u64; 16];
        let mut sender = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: all its fields are numbers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = sender.as_mut_ptr().cast();
        message.msg_namelen = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: every pointer in `message` is to memory of ours of the length beside it, which outlives the call.
        let count = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        frame.truncate(count as usize);
        if let Some(tag) = vlan_tag(&message)
            && frame.len() >= 12
        {
            frame.splice(12..12, tag);
        }
        // SAFETY: zeroed at first, which is a value of it, and the kernel has filled it since.
        let sender = unsafe { sender.assume_init() };
        Ok(Some(Captured { frame, outgoing: sender.sll_pkttype == libc::PACKET_OUTGOING }))
    }
}

/// The tag beside a frame that `recvmsg` has filled in.
fn vlan_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel wrote the control messages and their whole length, and the CMSG functions stay within it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: not null, so it points at a header within the control buffer, which is aligned for it.
        let header = unsafe { *next };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: a message of this type carries a tpacket_auxdata, perhaps not aligned for one.
            let data = unsafe { ptr::read_unaligned(libc::CMSG_DATA(next).cast::<libc::tpacket_auxdata>()) };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let [a, b] = data.tp_vlan_tpid.to_be_bytes();
                let [c, d] = data.tp_vlan_tci.to_be_bytes();
                return Some([a, b, c, d]);
            }
        }
        // SAFETY: as for the first header.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int that outlives the call, and the length is its length.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::netns::{Netns, can_make_networks};
    use super::*;

    #[test]
    fn frames_come_as_they_were_sent_tags_included() {
        if !can_make_networks() {
            return;
        }
        let [one, two] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        Netns::connect((&one, "eth0", ""), (&two, "eth0", "")).expect("a cable");
        let from = one.run(|| PacketSocket::open("eth0")).expect("a socket");
        let to = two.run(|| PacketSocket::open("eth0")).expect("a socket");
        let tagged = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7, 0x88, 0xb5], &[9; 40]].concat();
        from.send(&tagged).expect("sent");
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            match to.recv(Duration::from_secs(1)).expect("received") {
                Some(captured) if captured.frame == tagged => {
                    assert!(!captured.outgoing);
                    return;
                }
                Some(_) | None => {}
            }
        }
        panic!("the frame did not come");
    }

    #[test]
    fn a_datagram_that_is_carried_on_arrives_though_its_sum_was_left_undone() {
        if !can_make_networks() {
            return;
        }
        let [one, middle, two] = std::array::from_fn(|_| Netns::new().expect("a namespace"));
        Netns::connect((&one, "eth0", "10.0.0.1/24"), (&middle, "left", "")).expect("a cable");
        Netns::connect((&middle, "right", ""), (&two, "eth0", "10.0.0.2/24")).expect("a cable");
        let wait = Duration::from_millis(20);
        let open = |name| middle.run(|| PacketSocket::open_to_carry(name, wait)).expect("a socket");
        let (left, right) = (open("left"), open("right"));
        // To all, so that nobody has to be asked for an address first.
        let from = one.run(|| UdpSocket::bind("10.0.0.1:0")).expect("a socket");
        from.set_broadcast(true).expect("an option");
        let to = two.run(|| UdpSocket::bind("0.0.0.0:7")).expect("a socket");
        to.set_read_timeout(Some(wait)).expect("a time-out");
        from.send_to(b"carried", "10.0.0.255:7").expect("sent");
        let start = std::time::Instant::now();
        let (mut frame, mut datagram) = (Box::new([0; FRAME_MAX]), [0; 64]);
        while start.elapsed() < Duration::from_secs(3) {
            if let Some(frame) = left.recv_into(&mut frame).expect("received") {
                right.send(frame).expect("sent");
            }
            if let Ok(count) = to.recv(&mut datagram) {
                assert_eq!(&datagram[..count], b"carried");
                return;
            }
        }
        panic!("the datagram did not come");
    }

    #[test]
    fn a_missing_interface_is_an_error() {
        assert!(PacketSocket::open("none-such").is_err());
    }
}
