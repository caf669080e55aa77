//! The TAP device: a network card whose other end is this process.
//!
//! Opening creates the device (or attaches to a persistent one), gives it a MAC and an MTU, and leaves it down and
//! without addresses; [`super::netlink`] does the rest. One read is one frame, one write is one frame: a TAP has no
//! `recvmmsg`, so the only batch there is is the super-frame of a device opened with `offload`.
//!
//! With `offload`, each read delivers, and each write expects, `[virtio_net_hdr][frame]`, the header being
//! [`VNET_HEADER_LEN`] bytes (virtio 1.2, 5.1.6, with `num_buffers`), and the frame may be up to 64 KiB. Without it, a
//! read is the frame alone and never longer than the MTU plus Ethernet and VLAN headers.
//!
//! The ioctls here look interfaces up in the network namespace of the **calling thread**, so a device for a
//! namespace is opened on a thread that is in it. Reading and writing work from anywhere.

use std::ffi::CString;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::ids::MacAddr;
use crate::wire::vnet::VnetHeader;

/// Bytes of the virtio-net header before each frame of a device opened with `vnet`.
pub const VNET_HEADER_LEN: usize = VnetHeader::LEN;

/// What a TAP device should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Interface name, up to 15 bytes; one `%d` in it becomes the first free number.
    pub name: String,
    /// The card's address; `None` leaves the kernel's random one.
    pub mac: Option<MacAddr>,
    /// Bytes of payload in a frame, without the Ethernet header.
    pub mtu: u16,
    /// Frames carry a virtio-net header and may be super-frames, as far as the kernel has the [`Offloads`].
    pub offload: bool,
    /// Lets the device be opened again under its name, each opening being one more queue.
    pub multi_queue: bool,
}

/// An open TAP device, or one queue of it. The device disappears with the last queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    ifindex: u32,
    offloads: Option<Offloads>,
}

/// What the kernel leaves to the other end of a device: the `TUN_F_*` bits of `TUNSETOFFLOAD` (linux/if_tun.h).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u32);

impl Offloads {
    /// Checksums may be partial.
    pub const CSUM: Self = Self(1);
    /// TCP super-frames, over IPv4 and IPv6.
    pub const TSO4: Self = Self(2);
    pub const TSO6: Self = Self(4);
    /// TCP super-frames whose first segment has CWR.
    pub const TSO_ECN: Self = Self(8);
    /// UDP super-frames (Linux 6.2), over IPv4 and IPv6.
    pub const USO4: Self = Self(0x20);
    pub const USO6: Self = Self(0x40);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::CSUM, "csum"),
        (Self::TSO4, "tso4"),
        (Self::TSO6, "tso6"),
        (Self::TSO_ECN, "ecn"),
        (Self::USO4, "uso4"),
        (Self::USO6, "uso6"),
    ];

    /// Whether it has all of `other`.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Their names, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(one, _)| self.has(*one)).map(|(_, name)| name)
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Why a TAP device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(
        "there is no /dev/net/tun; load the kernel module with `modprobe tun`, or in a container pass the device in \
         (--device /dev/net/tun)"
    )]
    NoTun(#[source] io::Error),
    #[error(
        "/dev/net/tun is closed to this user ({0}); run as root, or open it with `chmod 666 /dev/net/tun` (what may be \
         done with it needs CAP_NET_ADMIN all the same); in a container pass the device in (--device /dev/net/tun)"
    )]
    Closed(#[source] io::Error),
    #[error("not permitted to make the interface {name}; run as root or with CAP_NET_ADMIN")]
    NotPermitted { name: String, source: io::Error },
    #[error("the interface name {name} is taken; choose another device name, or end the program that uses it")]
    NameBusy { name: String },
    #[error("{name:?} is no interface name; use 1 to 15 bytes without spaces, '/' and ':'")]
    NameInvalid { name: String },
    #[error("setting up the interface {name} failed at {call}: {source}")]
    Other { name: String, call: &'static str, source: io::Error },
}

impl Tap {
    /// Creates the device `config` describes, in the calling thread's network namespace.
    ///
    /// It is down and has no addresses yet.
    pub fn open(config: &TapConfig) -> Result<Self, TapError> {
        let TapConfig { name, mac, mtu, offload, multi_queue } = config;
        if !is_interface_name(name) {
            return Err(TapError::NameInvalid { name: name.clone() });
        }
        let device = open_tun(name)?;

        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        if *offload {
            flags |= libc::IFF_VNET_HDR;
        }
        if *multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        unsafe { ioctl(device.as_fd(), libc::TUNSETIFF, &mut request) }.map_err(|source| {
            let taken =
                || matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) || interface_index(name) != 0;
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted { name: name.clone(), source },
                Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) if taken() => TapError::NameBusy { name: name.clone() },
                _ => TapError::Other { name: name.clone(), call: "TUNSETIFF", source },
            }
        })?;
        let name = interface_name(&request);

        let failed = |call| {
            let name = name.clone();
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM) => TapError::NotPermitted { name, source },
                _ => TapError::Other { name, call, source },
            }
        };
        let offloads = if *offload {
            let mut size = VNET_HEADER_LEN as libc::c_int;
            // SAFETY: TUNSETVNETHDRSZ reads one int.
            unsafe { ioctl(device.as_fd(), libc::TUNSETVNETHDRSZ, &mut size) }.map_err(failed("TUNSETVNETHDRSZ"))?;
            Some(ask_for_offloads(device.as_fd()))
        } else {
            None
        };
        let control = control_socket().map_err(failed("socket"))?;
        if let Some(mac) = mac {
            let mut request = interface_request(&name);
            let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
            for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_hwaddr = address;
            // SAFETY: SIOCSIFHWADDR reads one ifreq.
            unsafe { ioctl(control.as_fd(), libc::SIOCSIFHWADDR as libc::Ioctl, &mut request) }
                .map_err(failed("SIOCSIFHWADDR"))?;
        }
        let mut request = interface_request(&name);
        request.ifr_ifru.ifru_mtu = libc::c_int::from(*mtu);
        // SAFETY: SIOCSIFMTU reads one ifreq.
        unsafe { ioctl(control.as_fd(), libc::SIOCSIFMTU as libc::Ioctl, &mut request) }
            .map_err(failed("SIOCSIFMTU"))?;

        let ifindex = interface_index(&name);
        Ok(Self { fd: device, name, ifindex, offloads })
    }

    /// The interface's name, with `%d` filled in. Others may rename the interface later; the index stays.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index in the namespace it was opened in.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// What the kernel hands over and takes; `None` for a device without virtio-net headers.
    pub fn offloads(&self) -> Option<Offloads> {
        self.offloads
    }

    /// Reads one frame into `buffer` and returns its length, with the virtio-net header if the device has one.
    ///
    /// `WouldBlock` when there is none. A frame longer than `buffer` is cut short.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer))?)
    }

    /// Writes one frame, in parts, the first being the virtio-net header if the device has one.
    ///
    /// `EIO` means the device is down, `EINVAL` that this frame or its header is malformed; both concern this frame
    /// only. It never waits: the frame goes straight into the kernel's receive path.
    pub fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, parts))?)
    }

    /// Whether `error`, from a read or write, means that the device was deleted and will not come back.
    ///
    /// A device that is merely down gives `EIO`, which is not that.
    pub fn is_gone(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Switches on as much as the kernel has: kernels before 6.2 refuse the whole set if UDP is in it.
fn ask_for_offloads(device: BorrowedFd<'_>) -> Offloads {
    const CSUM: Offloads = Offloads::CSUM;
    const TCP: Offloads = CSUM.and(Offloads::TSO4).and(Offloads::TSO6).and(Offloads::TSO_ECN);
    const UDP: Offloads = TCP.and(Offloads::USO4).and(Offloads::USO6);
    for wanted in [UDP, TCP, CSUM] {
        // SAFETY: TUNSETOFFLOAD takes the bits themselves, no pointer.
        if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(wanted.0)) } == 0 {
            return wanted;
        }
    }
    Offloads::default()
}

pub(super) fn open_tun(name: &str) -> Result<OwnedFd, TapError> {
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the path is a C string literal.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) };
    if fd >= 0 {
        // SAFETY: open returned this descriptor and nobody else has it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let source = io::Error::last_os_error();
    Err(match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun(source),
        Some(libc::EACCES | libc::EPERM) => TapError::Closed(source),
        _ => TapError::Other { name: name.to_owned(), call: "open", source },
    })
}

/// Any socket will do for interface ioctls; it decides the namespace.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `argument` must be what `request` reads and writes.
pub(super) unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument, and it is borrowed exclusively.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The kernel's own rules (`dev_valid_name`), and at most one `%`, in `%d`.
pub(super) fn is_interface_name(name: &str) -> bool {
    let plain = name.replacen("%d", "", 1);
    (1..libc::IFNAMSIZ).contains(&name.len())
        && !matches!(name, "." | "..")
        && !plain.contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_ascii_whitespace())
}

pub(super) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is an ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: it ends the name.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

pub(super) fn interface_name(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// 0 if there is no such interface here.
pub(super) fn interface_index(name: &str) -> u32 {
    let Ok(name) = CString::new(name) else { return 0 };
    // SAFETY: the name is a C string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::super::netns::{Netns, can_make_networks};
    use super::super::poll::{self, Watch};
    use super::*;
    use std::time::Duration;

    fn config(name: &str) -> TapConfig {
        let mac = Some(MacAddr([2, 0, 0x5e, 0x10, 0, 1]));
        TapConfig { name: name.into(), mac, mtu: 1400, offload: false, multi_queue: false }
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused_with_a_reason() {
        for name in ["", "a/b", "a b", "a:b", "a%s", "%d%d", "sixteen-bytes-xx", ".", ".."] {
            let error = Tap::open(&config(name)).expect_err(name);
            assert!(matches!(error, TapError::NameInvalid { .. }), "{name:?}: {error}");
        }
        assert!(is_interface_name("eps%d"));
        assert!(is_interface_name("fifteen-bytes-x"));
    }

    #[test]
    fn a_device_has_the_mac_and_mtu_it_was_asked_for() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        ns.run(|| {
            let tap = Tap::open(&config("tap%d")).expect("a TAP");
            assert_eq!(tap.name(), "tap0");
            assert_eq!(tap.ifindex(), interface_index("tap0"));
            let sys = |file: &str| {
                let mut request = interface_request("tap0");
                let control = control_socket().expect("a socket");
                // SAFETY: both read and write one ifreq.
                unsafe {
                    if file == "mtu" {
                        ioctl(control.as_fd(), libc::SIOCGIFMTU as libc::Ioctl, &mut request).expect("an MTU");
                        request.ifr_ifru.ifru_mtu.to_string()
                    } else {
                        ioctl(control.as_fd(), libc::SIOCGIFHWADDR as libc::Ioctl, &mut request).expect("a MAC");
                        let data = request.ifr_ifru.ifru_hwaddr.sa_data;
                        MacAddr(std::array::from_fn(|i| data[i] as u8)).to_string()
                    }
                }
            };
            assert_eq!(sys("mtu"), "1400");
            assert_eq!(sys("mac"), "02:00:5e:10:00:01");
        });
    }

    #[test]
    fn a_name_in_use_is_reported_as_taken() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        ns.run(|| {
            let _tap = Tap::open(&config("eps0")).expect("a TAP");
            for name in ["eps0", "lo"] {
                let error = Tap::open(&config(name)).expect_err("taken");
                assert!(matches!(error, TapError::NameBusy { .. }), "{name}: {error}");
            }
        });
    }

    #[test]
    fn a_multi_queue_device_opens_again() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        ns.run(|| {
            let config = TapConfig { multi_queue: true, offload: true, ..config("eps0") };
            let first = Tap::open(&config).expect("a TAP");
            let second = Tap::open(&config).expect("a second queue");
            assert_eq!(first.ifindex(), second.ifindex());
        });
    }

    #[test]
    fn a_device_that_is_down_is_not_gone_and_a_deleted_one_wakes_its_reader() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let tap = ns.run(|| Tap::open(&config("eps0"))).expect("a TAP");
        let frame = [0u8; 60];
        let write = || tap.try_write(&[IoSlice::new(&frame[..20]), IoSlice::new(&frame[20..])]);
        let error = write().expect_err("the device is down");
        assert!(!Tap::is_gone(&error), "{error}");
        assert_eq!(tap.try_read(&mut [0; 2000]).expect_err("empty").kind(), io::ErrorKind::WouldBlock);

        let netlink = ns.netlink().expect("a netlink socket");
        smol::block_on(async {
            netlink.set_up(tap.ifindex()).await.expect("up");
            assert_eq!(write().expect("a frame"), 60);
            netlink.delete_link(tap.ifindex()).await.expect("deleted");
        });
        let woken = poll::block_on(smol::future::or(
            async {
                let watch = Watch::new(&tap).expect("watched");
                loop {
                    watch.readable().await;
                    match tap.try_read(&mut [0; 2000]) {
                        Err(error) if Tap::is_gone(&error) => return true,
                        Ok(_) => {}
                        Err(_) => watch.clear(),
                    }
                }
            },
            async {
                smol::Timer::after(Duration::from_secs(5)).await;
                false
            },
        ));
        assert!(woken.expect("an epoll"), "the reader never heard of the deletion");
    }

    #[test]
    fn what_the_kernel_offloads_is_known_by_name() {
        assert_eq!(Offloads::CSUM.and(Offloads::TSO6).names().collect::<Vec<_>>(), ["csum", "tso6"]);
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let open = |name, offload| ns.run(|| Tap::open(&TapConfig { offload, ..config(name) })).expect("a TAP");
        assert_eq!(open("plain", false).offloads(), None);
        let offloads = open("super", true).offloads().expect("virtio-net headers");
        assert!(offloads.has(Offloads::TSO4.and(Offloads::TSO6)), "{offloads:?}");
        println!("this kernel offloads {offloads:?}");
    }
}
