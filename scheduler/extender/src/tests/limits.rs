//! What a caller may take from others, and what is kept about them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_agent_takes_the_place_of_a_permit() {
    let extender = extender("places").await;
    let _all = extender.shared.permits.acquire_many(MAX_PERMITS.try_into().unwrap()).await;
    let busy = extender.refusal(Some("agent-n1"), permit(1, "1").to_string()).await;
    assert_eq!(busy, (429, RefusalCode::Busy));
    let stranger = extender.refusal(Some("stolen"), permit(1, "1").to_string()).await;
    assert_eq!(stranger, (401, RefusalCode::Unauthenticated), "who waits for that has no place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_noted_about_a_vm_goes_with_it() {
    let extender = extender("noted").await;
    for count in 1..=2 {
        extender.running().await;
        let body = permit(count, "1").to_string();
        let (status, _) =
            extender.request(None, "/v1/permit", Some("agent-n1"), body).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        let notes = || async {
            let notes = extender.called(&Method::PATCH, "/virtualmachines/pg");
            let requested = controller_api::names::ANNOTATION_REQUESTED;
            let noted = |note: &&Value| note["metadata"]["annotations"][requested].is_string();
            notes.iter().filter(noted).count() as u64 == count
        };
        extender.until("the note of the request", |_| true, notes).await;
        // The watch was interrupted when the VM went.
        extender.core.tell(Event::VmsListed([].into())).await.unwrap();
    }
}
