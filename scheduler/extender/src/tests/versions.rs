//! Agents one version apart are understood, and get what they understand.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_of_the_version_of_its_request() {
    let extender = extender("versions").await;
    extender.running().await;
    for (generation, version, leased) in [(1, 1, false), (2, 2, true), (3, 1, false)] {
        let mut body = permit(generation, "1");
        body["version"] = json!(version);
        let answered = extender.request(None, "/v1/permit", Some("agent-n1"), body.to_string());
        let (status, answer) = answered.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!((&answer["version"], answer["leased"].is_object()), (&json!(version), leased));
    }
    let mut body = permit(4, "1");
    body["version"] = json!(scheduler_protocol::VERSION + 1);
    let refused = extender.refusal(Some("agent-n1"), body.to_string()).await;
    assert_eq!(refused, (400, RefusalCode::BadRequest), "from this agents see that it is older");
}
