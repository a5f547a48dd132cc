use super::*;

#[test]
fn a_message_reads_as_its_name_and_its_words() {
    let mut message = Message::new(Request::SET_VRING_NUM, &[1, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(message.to_string(), "SET_VRING_NUM 0x1 0x100");
    message.flags |= NEED_REPLY;
    message
        .fds
        .push(std::fs::File::open("/dev/null").unwrap().into());
    let text = "SET_VRING_NUM 0x1 0x100 need-reply with 1 fds";
    assert_eq!(message.to_string(), text);
    assert_eq!(Message::of(4711, &[]).to_string(), "request 4711");
}

#[test]
fn an_answer_is_to_its_request_and_waits_for_none() {
    let mut message = Message::new(Request::SET_OWNER, &[]);
    message.flags |= NEED_REPLY;
    let answer = message.ack(1);
    assert_eq!(
        (answer.code(), answer.flags, answer.u64_at(0)),
        (Some(Request::SET_OWNER), VERSION | REPLY, 1)
    );
    assert!(message.needs_ack() && !answer.needs_ack());
}
