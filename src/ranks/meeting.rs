//! Passes the id of the NCCL communicator from rank 0 to the other ranks on GPUs. Nothing else is sent here.
//!
//! ```text
//! tcp   rank 0 listens at MASTER_ADDR:MASTER_PORT; if a program holds the port (torchrun's own store
//!       does), at the next one. The others try both.
//!           rank r -> 0    magic, version, ranks, rank          24 bytes
//!           0 -> rank r    magic, verdict                       12 bytes, at once
//!           0 -> rank r    id                                  128 bytes, when all have come
//!       The connection then stays open without traffic; it ends when the other end dies.
//! fs    rank 0 writes magic, version, ranks and id to a file that must not exist; the others wait for it
//! ```
//!
//! Errors: a different version; a different number of ranks; a rank that connects twice; a file that exists
//! before rank 0 writes it; a file that holds something else. Connections of other programs are closed,
//! counted and otherwise ignored. The wait has a limit.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agreement::named;
use crate::terminal::counted;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"mapl-id\n";

/// Version of these messages.
const VERSION: u32 = 1;

/// Bytes of NCCL's id.
pub(crate) const ID: usize = 128;

const HELLO: usize = 8 + 3 * 4;
const VERDICT: usize = 8 + 4;

/// Time between two polls.
const INTERVAL: Duration = Duration::from_millis(10);

/// Time within which rank 0 sends its verdict; a program that sends none is not rank 0.
const VERDICT_WAIT: Duration = Duration::from_secs(5);

/// Meeting point of the ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    File(PathBuf),
}

/// Result of a meeting.
#[derive(Debug)]
pub(crate) struct Met {
    pub id: [u8; ID],
    /// After a meeting over TCP, open connections without traffic, each with the rank at the other end: rank 0
    /// has one to every other rank, and every other rank has one to rank 0. Empty after a meeting over a file.
    pub links: Vec<(usize, TcpStream)>,
}

/// Rank and number of ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub rank: usize,
    pub size: usize,
}

/// Gets the id from rank 0, which creates it with `new_id`. Waits for at most `limit`. `say` reports the use
/// of a different port.
pub(crate) fn meet(
    place: &Place,
    seat: Seat,
    new_id: impl FnOnce() -> Result<[u8; ID]>,
    (limit, say): (Duration, &dyn Fn(&str)),
) -> Result<Met> {
    let until = Instant::now() + limit;
    match (place, seat.rank) {
        (Place::Tcp { host, port }, 0) => host_ranks((host, *port), seat, new_id()?, (limit, until), say),
        (Place::Tcp { host, port }, _) => find_host((host, *port), seat, (limit, until)),
        (Place::File(path), 0) => write_id(path, seat, new_id()?),
        (Place::File(path), _) => read_id(path, seat, (limit, until)),
    }
}

/// Reply of rank 0 to a rank that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Welcome,
    OtherVersion,
    OtherSize,
    Twice,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Welcome, Self::OtherVersion, Self::OtherSize, Self::Twice];

    fn why(self) -> &'static str {
        match self {
            Self::Welcome => "it is expected",
            Self::OtherVersion => "it is a different version of mapl; start the same version on all ranks",
            Self::OtherSize => "it was started with a different number of ranks; check WORLD_SIZE on every host",
            Self::Twice => "another process has that rank; check RANK on every host",
        }
    }
}

fn refused(rank: usize, verdict: Verdict) -> Error {
    Error::Usage(format!("rank {rank} cannot join rank 0: {}", verdict.why()))
}

fn hello(seat: Seat) -> Vec<u8> {
    let numbers = [VERSION, seat.size as u32, seat.rank as u32];
    MAGIC.into_iter().chain(numbers.into_iter().flat_map(u32::to_le_bytes)).collect()
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// A connection whose first message has not arrived completely.
struct Guest {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// State of the first message of a guest.
enum Arrived {
    Nothing,
    Stranger,
    Hello(Vec<u32>),
}

impl Guest {
    fn look(&mut self) -> Arrived {
        let mut room = [0; HELLO];
        let missing = HELLO - self.bytes.len();
        match self.stream.read(&mut room[..missing]) {
            Ok(0) => return Arrived::Stranger,
            Ok(n) => self.bytes.extend(&room[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Arrived::Nothing,
            Err(_) => return Arrived::Stranger,
        }
        let known = self.bytes.len().min(MAGIC.len());
        match self.bytes.len() {
            _ if self.bytes[..known] != MAGIC[..known] => Arrived::Stranger,
            HELLO => Arrived::Hello(numbers(&self.bytes[MAGIC.len()..])),
            _ => Arrived::Nothing,
        }
    }
}

/// Listens at a port. On a loopback address only this host can connect.
fn bind(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let named = addresses(host, port)?;
    if named.iter().all(|address| address.ip().is_loopback()) {
        return TcpListener::bind(named.as_slice());
    }
    // An IPv6 socket accepts IPv4 connections too, if the system supports it.
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(e) if !is_held(&e) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        bound => bound,
    }
}

/// Listens at `port`, or at the next one if that is in use.
fn listen((host, port): (&str, u16), say: &dyn Fn(&str)) -> Result<TcpListener> {
    let failed = |e: std::io::Error| {
        Error::Runtime(format!(
            "rank 0 cannot listen at {host}:{port} or the next port ({e}); set MASTER_PORT to a free port, or pass \
             --nccl-init fs:/PATH"
        ))
    };
    match (bind(host, port), port.checked_add(1)) {
        (Err(e), Some(next)) if is_held(&e) => {
            let listener = bind(host, next).map_err(failed)?;
            say(&format!(
                "note: port {port} is held by another program (torchrun holds its own), so ranks meet at {next}"
            ));
            Ok(listener)
        }
        (bound, _) => bound.map_err(failed),
    }
}

fn is_held(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse
}

fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Iterator::collect)
}

fn host_ranks(
    at: (&str, u16),
    seat: Seat,
    id: [u8; ID],
    (limit, until): (Duration, Instant),
    say: &dyn Fn(&str),
) -> Result<Met> {
    let failed = |e: std::io::Error| Error::Runtime(format!("rank 0 cannot listen at {}:{}: {e}", at.0, at.1));
    let listener = listen(at, say)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let (mut guests, mut strangers) = (Vec::<Guest>::new(), 0);
    let mut links: Vec<Option<TcpStream>> = (0..seat.size).map(|_| None).collect();
    while links.iter().skip(1).any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => guests.push(Guest { stream, bytes: Vec::new() }),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                std::thread::sleep(INTERVAL)
            }
            // The other end has already closed the connection.
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => strangers += 1,
            Err(e) => return Err(failed(e)),
        }
        let mut waiting = Vec::new();
        for mut guest in guests {
            match guest.look() {
                Arrived::Nothing => waiting.push(guest),
                Arrived::Stranger => strangers += 1,
                Arrived::Hello(said) => {
                    let rank = said[2] as usize;
                    let verdict = match () {
                        () if said[0] != VERSION => Verdict::OtherVersion,
                        () if said[1] as usize != seat.size || rank >= seat.size => Verdict::OtherSize,
                        () if rank == 0 || links[rank].is_some() => Verdict::Twice,
                        () => Verdict::Welcome,
                    };
                    let answer: Vec<u8> = MAGIC.into_iter().chain((verdict as u32).to_le_bytes()).collect();
                    let sent = guest.stream.set_nonblocking(false).and_then(|()| guest.stream.write_all(&answer));
                    match verdict {
                        Verdict::Welcome if sent.is_ok() => links[rank] = Some(guest.stream),
                        // The rank gave up; it may connect again.
                        Verdict::Welcome => {}
                        verdict => return Err(refused(rank, verdict)),
                    }
                }
            }
        }
        guests = waiting;
        if Instant::now() >= until {
            let missing: Vec<usize> = (1..seat.size).filter(|&rank| links[rank].is_none()).collect();
            let others = match strangers + guests.len() {
                0 => String::new(),
                n => format!(" ({} from other programs)", counted(n, "connection")),
            };
            return Err(Error::Runtime(format!(
                "rank 0 waited {} s at {}:{} for {}{others}; start every rank, set MASTER_ADDR and MASTER_PORT to a place \
                 that all can reach, or pass --nccl-init fs:/PATH with a shared folder",
                limit.as_secs(),
                at.0,
                at.1,
                named(&missing)
            )));
        }
    }
    let mut met = Met { id, links: Vec::new() };
    for (rank, link) in links.into_iter().enumerate() {
        let Some(mut link) = link else { continue };
        link.write_all(&id).map_err(|e| Error::Runtime(format!("rank {rank} left before all had come: {e}")))?;
        met.links.push((rank, link));
    }
    Ok(met)
}

/// Tries once to reach rank 0 at an address; `Ok(None)` if nothing or a different program listens there.
fn try_host(address: SocketAddr, seat: Seat, until: Instant) -> Result<Option<Met>> {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return Ok(None) };
    let mut verdict = [0; VERDICT];
    let asked = stream
        .set_read_timeout(Some(VERDICT_WAIT))
        .and_then(|()| stream.write_all(&hello(seat)))
        .and_then(|()| stream.read_exact(&mut verdict));
    if asked.is_err() || verdict[..MAGIC.len()] != MAGIC {
        return Ok(None);
    }
    match Verdict::ALL.get(numbers(&verdict[MAGIC.len()..])[0] as usize) {
        Some(Verdict::Welcome) => {}
        Some(&verdict) => return Err(refused(seat.rank, verdict)),
        None => return Err(refused(seat.rank, Verdict::OtherVersion)),
    }
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let mut id = [0; ID];
    stream.set_read_timeout(Some(left)).and_then(|()| stream.read_exact(&mut id)).map_err(|e| {
        Error::Runtime(format!(
            "rank {} reached rank 0 at {address}, which ended or is still waiting for other ranks: {e}",
            seat.rank
        ))
    })?;
    Ok(Some(Met { id, links: vec![(0, stream)] }))
}

fn find_host((host, port): (&str, u16), seat: Seat, (limit, until): (Duration, Instant)) -> Result<Met> {
    let mut why = "nobody answers".to_owned();
    loop {
        // The next port is tried first, so that a program that holds `port` is not disturbed.
        for port in port.checked_add(1).into_iter().chain([port]) {
            match addresses(host, port) {
                Ok(all) => {
                    for address in all {
                        if let Some(met) = try_host(address, seat, until)? {
                            return Ok(met);
                        }
                    }
                }
                Err(e) => why = e.to_string(),
            }
        }
        if Instant::now() >= until {
            return Err(Error::Runtime(format!(
                "rank {} looked {} s for rank 0 at {host}:{port} and the next port ({why}); start rank 0 there, open the \
                 port, or pass --nccl-init fs:/PATH with a shared folder",
                seat.rank,
                limit.as_secs()
            )));
        }
        std::thread::sleep(10 * INTERVAL);
    }
}

fn write_id(path: &Path, seat: Seat, id: [u8; ID]) -> Result<Met> {
    if path.exists() {
        return Err(Error::Usage(format!(
            "--nccl-init: {} exists, perhaps from an earlier run; remove it, or name another file",
            path.display()
        )));
    }
    let head = [VERSION, seat.size as u32].into_iter().flat_map(u32::to_le_bytes);
    let bytes: Vec<u8> = MAGIC.into_iter().chain(head).chain(id).collect();
    crate::files::write_atomic(path, &bytes)?;
    Ok(Met { id, links: Vec::new() })
}

fn read_id(path: &Path, seat: Seat, (limit, until): (Duration, Instant)) -> Result<Met> {
    loop {
        match fs::read(path) {
            Ok(bytes) => return id_of(path, &bytes, seat).map(|id| Met { id, links: Vec::new() }),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("read", path)(e)),
            Err(_) if Instant::now() >= until => {
                return Err(Error::Runtime(format!(
                    "rank {} waited {} s for rank 0 to write {}; the folder of --nccl-init must be visible to all ranks",
                    seat.rank,
                    limit.as_secs(),
                    path.display()
                )));
            }
            Err(_) => std::thread::sleep(5 * INTERVAL),
        }
    }
}

fn id_of(path: &Path, bytes: &[u8], seat: Seat) -> Result<[u8; ID]> {
    let refuse = |why: &str| Err(Error::Usage(format!("--nccl-init: {} {why}", path.display())));
    let head = MAGIC.len() + 2 * 4;
    if bytes.len() != head + ID || bytes[..MAGIC.len()] != MAGIC {
        return refuse("is not a file that rank 0 wrote; give a path where no file exists yet");
    }
    let said = numbers(&bytes[MAGIC.len()..head]);
    match (said[0] == VERSION, said[1] as usize == seat.size) {
        (true, true) => Ok(std::array::from_fn(|i| bytes[head + i])),
        (false, _) => refuse("was written by a different version of mapl; start the same version on all ranks"),
        (true, false) => refuse(&format!("was written for {} ranks, and this is one of {}", said[1], seat.size)),
    }
}

/// Ranks whose connection has ended.
pub(crate) fn ended(links: &mut Vec<(usize, TcpStream)>) -> Vec<usize> {
    let is_open = |stream: &mut TcpStream| {
        let mut byte = [0];
        match stream.set_nonblocking(true).and_then(|()| stream.peek(&mut byte)) {
            Ok(n) => n > 0,
            Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    };
    let mut gone = Vec::new();
    links.retain_mut(|(rank, stream)| {
        let open = is_open(stream);
        if !open {
            gone.push(*rank);
        }
        open
    });
    gone
}

#[cfg(test)]
mod tests;
