//! Meetings over real sockets and files.

use std::net::TcpListener;
use std::sync::Mutex;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn id() -> [u8; ID] {
    std::array::from_fn(|i| (7 * i) as u8)
}

fn local(port: u16) -> Place {
    Place::Tcp { host: "127.0.0.1".into(), port }
}

/// A listener on a port whose successor is free too.
fn two_ports() -> (TcpListener, u16) {
    loop {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return (listener, port);
        }
    }
}

fn join(place: &Place, rank: usize, size: usize, limit: Duration) -> Result<Met> {
    meet(place, Seat { rank, size }, || Ok(id()), (limit, &|_| ()))
}

/// Sends `bytes` as a first message and returns the verdict of rank 0 as a number; `None` if rank 0 sends none.
fn say_hello(port: u16, bytes: &[u8]) -> Option<u32> {
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(INTERVAL),
        }
    };
    stream.write_all(bytes).unwrap();
    let mut answer = [0; VERDICT];
    stream.read_exact(&mut answer).ok()?;
    assert_eq!(answer[..8], MAGIC);
    Some(numbers(&answer[8..])[0])
}

#[test]
fn all_ranks_get_the_id_and_links_show_who_has_left() {
    let (listener, port) = two_ports();
    drop(listener);
    let place = &local(port);
    let mut met: Vec<Met> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || join(place, rank, 3, LIMIT).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(met.iter().all(|met| met.id == id()));
    let ranks = |met: &Met| met.links.iter().map(|(rank, _)| *rank).collect::<Vec<_>>();
    assert_eq!(met.iter().map(ranks).collect::<Vec<_>>(), [vec![1, 2], vec![0], vec![0]]);
    assert!(ended(&mut met[0].links).is_empty() && ended(&mut met[2].links).is_empty());
    met.remove(1);
    let began = Instant::now();
    while met[0].links.len() == 2 && began.elapsed() < LIMIT {
        for rank in ended(&mut met[0].links) {
            assert_eq!(rank, 1);
        }
    }
    assert_eq!(ranks(&met[0]), [2]);
}

#[test]
fn a_port_that_is_held_makes_them_meet_at_the_next_one_and_rank_0_says_so() {
    let (holder, port) = two_ports();
    let (place, said) = (local(port), Mutex::new(Vec::<String>::new()));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let say = |text: &str| said.lock().unwrap().push(text.to_owned());
            meet(&place, Seat { rank: 0, size: 2 }, || Ok(id()), (LIMIT, &say))
        });
        assert_eq!(join(&place, 1, 2, LIMIT).unwrap().id, id());
        first.join().unwrap().unwrap();
    });
    let said = said.into_inner().unwrap();
    assert_eq!(said.len(), 1);
    assert!(said[0].contains(&format!("port {port} is held")) && said[0].contains(&(port + 1).to_string()), "{said:?}");
    let next = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
    let error = join(&place, 0, 2, LIMIT).unwrap_err().to_string();
    assert!(error.contains("cannot listen") && error.contains("MASTER_PORT"), "{error}");
    drop((holder, next));
}

#[test]
fn strangers_are_ignored() {
    let (listener, port) = two_ports();
    drop(listener);
    let place = local(port);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| join(&place, 0, 2, LIMIT));
        // A connection with a different protocol, then a silent one, and one that ends in the middle of its
        // message.
        assert_eq!(say_hello(port, b"GET / HTTP/1.1\r\n\r\n"), None);
        let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(&MAGIC).unwrap();
        assert_eq!(join(&place, 1, 2, LIMIT).unwrap().id, id());
        assert_eq!(first.join().unwrap().unwrap().links.len(), 1);
        drop(silent);
    });
}

#[test]
fn other_versions_sizes_and_a_rank_that_comes_twice_are_refused_on_both_sides() {
    let changed = |at: usize, value: u32| {
        let mut bytes = hello(Seat { rank: 1, size: 3 });
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for (bytes, verdict, part) in [
        (changed(8, VERSION + 1), Verdict::OtherVersion, "a different version"),
        (changed(12, 4), Verdict::OtherSize, "number of ranks"),
        (changed(16, 3), Verdict::OtherSize, "number of ranks"),
        (changed(16, 0), Verdict::Twice, "another process has that rank"),
        (changed(16, 2), Verdict::Twice, "another process has that rank"),
    ] {
        let (listener, port) = two_ports();
        drop(listener);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| join(&local(port), 0, 3, LIMIT).unwrap_err());
            if bytes[16] == 2 {
                assert_eq!(say_hello(port, &bytes), Some(Verdict::Welcome as u32));
            }
            assert_eq!(say_hello(port, &bytes), Some(verdict as u32));
            let error = first.join().unwrap();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        });
    }
    // The rejected rank receives the reason.
    let (listener, port) = two_ports();
    drop(listener);
    std::thread::scope(|scope| {
        scope.spawn(|| join(&local(port), 0, 3, LIMIT).unwrap_err());
        let error = join(&local(port), 1, 2, LIMIT).unwrap_err();
        assert!(error.to_string().contains("rank 1 cannot join rank 0") && error.exit_code() == 2, "{error}");
    });
}

#[test]
fn a_rank_says_that_rank_0_ended_before_all_had_come() {
    let (listener, port) = two_ports();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; HELLO]).unwrap();
            stream.write_all(&MAGIC).unwrap();
            stream.write_all(&(Verdict::Welcome as u32).to_le_bytes()).unwrap();
        });
        let error = join(&local(port), 1, 3, LIMIT).unwrap_err().to_string();
        assert!(error.contains("rank 1 reached rank 0") && error.contains("ended"), "{error}");
    });
}

#[test]
fn a_wait_has_a_limit_and_names_who_is_missing() {
    let (listener, port) = two_ports();
    let short = Duration::from_millis(300);
    // A silent program holds the port, and rank 0 has not been started.
    let error = join(&Place::Tcp { host: "127.0.0.1".into(), port: port + 1 }, 3, 4, short).unwrap_err().to_string();
    assert!(error.contains("rank 3 looked") && error.contains("--nccl-init"), "{error}");
    drop(listener);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| join(&local(port), 0, 4, Duration::from_secs(2)).unwrap_err().to_string());
        assert_eq!(say_hello(port, b"other"), None);
        assert_eq!(say_hello(port, &hello(Seat { rank: 2, size: 4 })), Some(0));
        let error = first.join().unwrap();
        assert!(error.contains("for ranks 1 and 3 (1 connection from other programs)"), "{error}");
    });
}

#[test]
fn a_file_carries_the_id_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("id");
    let place = Place::File(path.clone());
    let short = Duration::from_millis(100);
    let error = join(&place, 1, 2, short).unwrap_err().to_string();
    assert!(error.contains("waited") && error.contains("visible to all ranks"), "{error}");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| join(&place, 1, 2, LIMIT).unwrap().id);
        assert_eq!(join(&place, 0, 2, LIMIT).unwrap().id, id());
        assert_eq!(other.join().unwrap(), id());
    });
    let refused = |rank: usize, size: usize, part: &str| {
        let error = join(&place, rank, size, short).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(0, 2, "exists, perhaps from an earlier run");
    refused(1, 3, "was written for 2 ranks");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] += 1;
    fs::write(&path, &bytes).unwrap();
    refused(1, 2, "a different version");
    fs::write(&path, "text").unwrap();
    refused(1, 2, "not a file that rank 0 wrote");
}
