//! Members by their names: the block in a hosts file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use eps_actor::io::netns::can_make_networks;

use crate::lab::{World, beside, join, program, text, until, wait_for_end};

#[test]
fn members_are_in_the_hosts_file_while_a_client_runs_and_nothing_else_of_it_changes() {
    if !can_make_networks() {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let [ada, bob] = ["ada", "bob"].map(|name| world.client(name));
    let line = world.start_server(&[]);
    let file = world.directory.path().join("hosts");
    let before = b"127.0.0.1\tlocalhost\r\n# \xff by hand\n10.1.2.3  cleo".to_vec();
    fs::write(&file, &before).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).expect("set");
    let hosts = format!("--hosts={}", file.display());
    let read = || String::from_utf8_lossy(&fs::read(&file).expect("read")).into_owned();

    let a = join(&ada, &line, &[&hosts]);
    let b = join(&bob, &line, &[]);
    let (ours, theirs) = (format!("\n{a}\tada "), format!("\n{b}\tbob "));
    until("both names", || read().contains(&ours) && read().contains(&theirs));
    assert!(fs::read(&file).expect("read").starts_with(&before));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o604);

    // A crash leaves the names; the next start takes them out, also where it is to keep none.
    ada.kill().expect("killed");
    assert!(read().contains(&theirs));
    ada.start(&[]).expect("started");
    until("the names to go", || fs::read(&file).is_ok_and(|now| now == before));

    ada.stop().expect("stopped");
    ada.start(&[&hosts]).expect("started");
    until("both names again", || read().contains(&ours) && read().contains(&theirs));
    let control = world.server.control_path().display().to_string();
    let kicked = program(&["kick", "bob", "--control", &control]);
    assert!(kicked.status.success(), "{}", text(&kicked.stderr));
    wait_for_end(&bob);
    until("bob's name to go", || !read().contains("bob") && read().contains(&ours));
    ada.stop().expect("stopped");
    assert_eq!(fs::read(&file).expect("read"), before);
    println!("names: in the hosts file while the client ran; gone at its end, after a crash, and after a kick");
}
