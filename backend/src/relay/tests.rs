use super::*;

#[test]
fn each_end_of_a_connection_reads_in_its_own_words() {
    let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
    let ends = [
        Ended::from(reset()),
        Ended::Cut,
        Ended::Refused,
        Ended::Protocol,
        Ended::Mute,
        Ended::Stopped,
        Ended::Memory,
        Ended::from(io::Error::other("no more sockets")),
    ];
    let texts: Vec<_> = ends.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], Ended::Closed.to_string());
    assert_eq!(texts[7], "no more sockets");
    for (at, text) in texts.iter().enumerate() {
        assert!(!text.is_empty() && !texts[..at].contains(text), "{text}");
    }
}
