//! A marked block of names in a hosts file: put in, replaced, taken out again. Everything outside of it stays as it
//! was, byte for byte.
//!
//! The names come from the signed map, and who leases them may choose them. So a member never takes over a name that
//! the file has already, nor `localhost`, nor one with a dot, which would stand for somebody in the Internet.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// A name and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub ip: IpAddr,
    pub name: String,
}

const BEGIN: &str = "# begin eps-actor";
const END: &str = "# end eps-actor";
const WARNING: &str = "kept by `eps-actor client`, changes are lost";
/// The begin of a block that follows a last line without an end: the line end before it is ours, too.
const JOINED: &str = "(the line before had no end)";
/// Ends every line of ours, so that they are known even where somebody took the markers away.
const OURS: &str = "# eps-actor";

/// The file without any block of ours.
pub fn without_block(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let words = line.trim_ascii();
        if words.starts_with(BEGIN.as_bytes()) {
            inside = true;
            if words.ends_with(JOINED.as_bytes()) && kept.last() == Some(&b'\n') {
                kept.pop();
            }
        } else if inside && words == END.as_bytes() {
            inside = false;
        } else if inside && words.ends_with(OURS.as_bytes()) {
            // Goes.
        } else {
            // Whoever took the end of a block away wants what follows to stay.
            inside = false;
            kept.extend(line);
        }
    }
    kept
}

/// The file with a block of these entries at its end, instead of any there was; without entries there is none. Gives
/// as well the names that were left out, because they are not for a member to take.
pub fn with_block(text: &[u8], entries: &BTreeSet<Entry>) -> (Vec<u8>, BTreeSet<String>) {
    let mut file = without_block(text);
    let taken = names(&file);
    let (good, left_out): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| {
        let name = entry.name.to_ascii_lowercase();
        !name.contains('.') && name != "localhost" && !taken.contains(&name)
    });
    if !good.is_empty() {
        let joined = file.last().is_some_and(|byte| *byte != b'\n');
        if joined {
            file.push(b'\n');
        }
        let note = if joined { JOINED } else { "" };
        file.extend(format!("{BEGIN}: {WARNING} {note}").trim_end().as_bytes());
        file.push(b'\n');
        for Entry { ip, name } in good {
            file.extend(format!("{ip}\t{name} {OURS}\n").as_bytes());
        }
        file.extend(END.as_bytes());
        file.push(b'\n');
    }
    (file, left_out.into_iter().map(|entry| entry.name.clone()).collect())
}

/// All names that a hosts file has, in lower case.
fn names(text: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(text);
    let words = text.lines().flat_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_ascii_lowercase).collect::<Vec<_>>()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(list: &[(&str, &str)]) -> BTreeSet<Entry> {
        list.iter().map(|(ip, name)| Entry { ip: ip.parse().unwrap(), name: (*name).into() }).collect()
    }

    #[test]
    fn a_block_is_put_at_the_end_replaced_and_taken_out() {
        let file = b"127.0.0.1\tlocalhost\n\n# by hand\n10.0.0.1 gate # the door\n";
        let (one, _) = with_block(file, &entries(&[("10.9.0.2", "bob"), ("10.9.0.1", "ada"), ("fd00::1", "ada")]));
        assert_eq!(
            String::from_utf8(one.clone()).unwrap(),
            "127.0.0.1\tlocalhost\n\n# by hand\n10.0.0.1 gate # the door\n\
             # begin eps-actor: kept by `eps-actor client`, changes are lost\n\
             10.9.0.1\tada # eps-actor\n10.9.0.2\tbob # eps-actor\nfd00::1\tada # eps-actor\n# end eps-actor\n"
        );
        let (two, _) = with_block(&one, &entries(&[("10.9.0.3", "cleo")]));
        assert_eq!(two, with_block(file, &entries(&[("10.9.0.3", "cleo")])).0);
        assert_eq!(with_block(&two, &BTreeSet::new()).0, file);
    }

    #[test]
    fn what_follows_a_block_stays_even_if_its_end_is_gone() {
        let (block, _) = with_block(b"a\n", &entries(&[("10.9.0.1", "ada")]));
        let after = [&block[..], b"10.0.0.7 later\n"].concat();
        assert_eq!(without_block(&after), b"a\n10.0.0.7 later\n");
        let text = String::from_utf8(after).unwrap().replace("# end eps-actor\n", "");
        assert_eq!(without_block(text.as_bytes()), b"a\n10.0.0.7 later\n");
    }

    #[test]
    fn a_member_takes_no_name_that_is_not_for_it() {
        let file = b"127.0.0.1 localhost\n127.0.1.1 Desk desk.home # a comment names printer\n";
        let list =
            [("10.9.0.1", "desk"), ("10.9.0.2", "LOCALHOST"), ("10.9.0.3", "www.example.org"), ("10.9.0.4", "printer")];
        let (file, left_out) = with_block(file, &entries(&list));
        assert_eq!(left_out, ["LOCALHOST", "desk", "www.example.org"].map(String::from).into());
        assert!(String::from_utf8(file).unwrap().contains("10.9.0.4\tprinter # eps-actor\n"));
    }

    proptest! {
        #[test]
        fn any_file_is_the_same_after_the_block_has_gone(
            lines in proptest::collection::vec("[ -~\t\u{e4}]{0,30}", 0..12),
            ends in any::<bool>(),
            members in proptest::collection::btree_set(("[a-z]{1,8}", any::<[u8; 4]>()), 0..5),
        ) {
            let mut file = lines.join("\n").into_bytes();
            if ends && !file.is_empty() {
                file.push(b'\n');
            }
            prop_assume!(!lines.iter().any(|line| line.contains("eps-actor")));
            let members = members.into_iter().map(|(name, ip)| Entry { ip: IpAddr::from(ip), name }).collect();
            let (with, _) = with_block(&file, &members);
            prop_assert_eq!(without_block(&with), file.clone());
            prop_assert_eq!(with_block(&with, &members).0, with);
        }
    }
}
