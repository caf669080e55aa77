//! The TUN device: a network interface of IP packets whose other end is this process.
//!
//! As [`tap`](super::tap), without Ethernet and without virtio-net headers: one read is one packet, one write is one
//! packet, and the kernel leaves no checksum to us. What is no IP packet a write refuses with `EINVAL`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::tap::{
    TapError, control_socket, interface_index, interface_name, interface_request, ioctl, is_interface_name, open_tun,
};

/// An open TUN device, which disappears with it.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    ifindex: u32,
}

impl Tun {
    /// Creates a device in the calling thread's network namespace, down and without addresses. One `%d` in the name
    /// becomes the first free number; `mtu` is in bytes of packets.
    ///
    /// # Errors
    /// As those of [`Tap::open`](super::tap::Tap::open).
    pub fn open(name: &str, mtu: u16) -> Result<Self, TapError> {
        if !is_interface_name(name) {
            return Err(TapError::NameInvalid { name: name.to_owned() });
        }
        let fd = open_tun(name)?;
        let failed = |call| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name: name.to_owned(), source },
                Some(libc::EBUSY | libc::EEXIST) => TapError::NameBusy { name: name.to_owned() },
                _ => TapError::Other { name: name.to_owned(), call, source },
            }
        };
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        unsafe { ioctl(fd.as_fd(), libc::TUNSETIFF, &mut request) }.map_err(failed("TUNSETIFF"))?;
        let name = interface_name(&request);
        let control = control_socket().map_err(failed("socket"))?;
        let mut request = interface_request(&name);
        request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
        // SAFETY: SIOCSIFMTU reads one ifreq.
        unsafe { ioctl(control.as_fd(), libc::SIOCSIFMTU as libc::Ioctl, &mut request) }
            .map_err(failed("SIOCSIFMTU"))?;
        let ifindex = interface_index(&name);
        Ok(Self { fd, name, ifindex })
    }

    /// The interface's name, with `%d` filled in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index in the namespace it was opened in.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Reads one packet into `buffer` and returns its length; `WouldBlock` when there is none. A packet longer than
    /// `buffer` is cut short.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer))?)
    }

    /// Writes one packet. `EIO` means the device is down, `EINVAL` that this is no IP packet. It never waits.
    pub fn try_write(&self, packet: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, packet))?)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::netns::{Netns, can_make_networks};
    use super::*;

    #[test]
    fn a_device_of_packets_takes_the_first_free_name_and_refuses_what_is_no_packet() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let (first, second) = ns.run(|| (Tun::open("tun%d", 1500), Tun::open("tun%d", 1400)));
        let (first, second) = (first.expect("a TUN"), second.expect("a TUN"));
        assert_eq!((first.name(), second.name()), ("tun0", "tun1"));
        assert!(first.ifindex() != 0 && first.ifindex() != second.ifindex());
        let netlink = ns.netlink().expect("netlink");
        smol::block_on(async {
            netlink.add_address(first.ifindex(), [10, 42, 42, 1].into(), 24).await.expect("an address");
            netlink.set_up(first.ifindex()).await.expect("up");
        });
        let error = first.try_write(b"\0garbage").expect_err("no packet");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        // A packet to somebody beyond the device comes out of it as it went in.
        let socket = ns.run(|| std::net::UdpSocket::bind("10.42.42.1:0")).expect("a socket");
        socket.send_to(b"hello", "10.42.42.2:9").expect("sent");
        let mut buffer = [0; 2048];
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            match first.try_read(&mut buffer) {
                // The kernel's own multicast may come before.
                Ok(length) if buffer[0] == 0x45 && length == 33 => break assert_eq!(&buffer[28..33], b"hello"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(std::time::Instant::now() < deadline, "no packet");
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(matches!(Tun::open("a b", 1500), Err(TapError::NameInvalid { .. })));
    }
}
