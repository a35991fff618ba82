"""The table of the API's routes: everything in it is served and documented."""

from typing import Final

from dispatcher.console import model
from dispatcher.console.api import (
    dead_events,
    deliveries,
    history,
    models,
    notifications,
    people,
    resend,
    signing_keys,
    testing,
    webhooks,
)
from dispatcher.console.api.route import AnyRoute, Empty, PathParameter, Route
from dispatcher.console.resend_model import RedriveModel
from dispatcher.stores.sql.records import Role

_WEBHOOK = {"id": PathParameter("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "Id of the webhook.")}
_SECRET = _WEBHOOK | {"fingerprint": PathParameter("[0-9a-f]{12}", "Fingerprint of the signing secret.")}
_KEY = _WEBHOOK | {"fingerprint": PathParameter("[0-9a-f]{12}", "Fingerprint of the signing key.")}
_EVENT = _WEBHOOK | {"event": PathParameter("[A-Za-z0-9_-]{1,64}", "Id of the event, its `webhook-id`.")}
_TOKEN = {"id": PathParameter("[0-9a-f]{16}", "Id of the token.")}
_DEAD = {"id": PathParameter("[0-9]{1,10}-[0-9]{1,19}", "Id of the dead event.")}
_JOB = {"id": PathParameter("[A-Za-z0-9_-]{1,64}", "Id of the job.")}

_VIEWER, _ADMIN = Role.VIEWER, Role.ADMIN

ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        "GET", "/me", "getMe", "The authenticated caller.", _VIEWER,
        people.get_me, Empty, Empty, models.Me,
    ),
    Route(
        "GET", "/webhooks", "listWebhooks", "Webhooks: search, filter, sort, page by page.", _VIEWER,
        webhooks.list_webhooks, models.WebhookList, Empty, models.WebhookPage,
    ),
    Route(
        "POST", "/webhooks", "createWebhook", "Create a webhook; an organisation and sandbox have at most one.", _ADMIN,
        webhooks.create_webhook, Empty, models.WebhookDraft, models.Webhook, 201,
        gives_version=True, error_statuses=frozenset({409}),
    ),
    Route(
        "POST", "/webhooks/test", "testDraft", "Send a sample event with a draft, before it is saved.", _ADMIN,
        testing.test_draft, Empty, models.DraftTest, model.TestResultModel, error_statuses=frozenset({404}),
    ),
    Route(
        "POST", "/webhooks/preview", "previewDraft", "The exact request of a sample event; nothing is sent.", _ADMIN,
        testing.preview_draft, Empty, models.DraftTest, model.TestResultModel, error_statuses=frozenset({404}),
    ),
    Route(
        "GET", "/webhooks/{id}", "getWebhook", "A webhook.", _VIEWER,
        webhooks.get_webhook, Empty, Empty, models.Webhook, path_parameters=_WEBHOOK, gives_version=True,
    ),
    Route(
        "PUT", "/webhooks/{id}", "replaceWebhook", "Change a webhook.", _ADMIN,
        webhooks.replace_webhook, Empty, models.WebhookDraft, models.Webhook,
        path_parameters=_WEBHOOK, wants_version=True, gives_version=True,
    ),
    Route(
        "DELETE", "/webhooks/{id}", "deleteWebhook", "Delete a webhook; it can be restored for 30 days.", _ADMIN,
        webhooks.delete_webhook, Empty, Empty, None, 204, path_parameters=_WEBHOOK, wants_version=True,
    ),
    Route(
        "POST", "/webhooks/{id}/enable", "enableWebhook", "Resume deliveries that the dispatcher has stopped.",
        _ADMIN, webhooks.enable_webhook, Empty, Empty, models.Webhook, path_parameters=_WEBHOOK, gives_version=True,
    ),
    Route(
        "POST", "/webhooks/{id}/pause", "pauseWebhook", "Hold the webhook's events until it is resumed.", _ADMIN,
        webhooks.pause_webhook, Empty, Empty, models.Webhook, path_parameters=_WEBHOOK, gives_version=True,
    ),
    Route(
        "POST", "/webhooks/{id}/resume", "resumeWebhook", "Resume a paused webhook: its held events are sent.", _ADMIN,
        webhooks.resume_webhook, Empty, Empty, models.Webhook, path_parameters=_WEBHOOK, gives_version=True,
    ),
    Route(
        "POST", "/webhooks/{id}/signing-secrets", "generateSigningSecret", "Generate a signing secret; returned once.",
        _ADMIN, webhooks.generate_secret, Empty, models.NewSigningSecret, models.GeneratedSecretModel, 201,
        path_parameters=_WEBHOOK, gives_version=True, error_statuses=frozenset({412}),
    ),
    Route(
        "GET", "/webhooks/{id}/signing-secrets", "listSigningSecrets", "The signing secrets: dates, no values.",
        _VIEWER, webhooks.list_secrets, Empty, Empty, models.SigningSecretList, path_parameters=_WEBHOOK,
    ),
    Route(
        "POST", "/webhooks/{id}/signing-secrets/{fingerprint}/end", "endSigningSecret",
        "Let an older signing secret end, now or at a time.", _ADMIN,
        webhooks.end_secret, Empty, models.SecretEnd, models.Webhook,
        path_parameters=_SECRET, gives_version=True, error_statuses=frozenset({412}),
    ),
    Route(
        "GET", "/webhooks/{id}/signing-keys", "listSigningKeys", "The keys of the webhook's tokens: dates, no values.",
        _VIEWER, signing_keys.list_keys, Empty, Empty, models.SigningKeyList,
        path_parameters=_WEBHOOK, gives_version=True,
    ),
    Route(
        "POST", "/webhooks/{id}/signing-keys", "generateSigningKey",
        "Generate the next signing key; its public key is published at once.", _ADMIN,
        signing_keys.generate_key, Empty, models.NewSigningKey, models.SigningKeyList, 201,
        path_parameters=_WEBHOOK, gives_version=True, error_statuses=frozenset({412}),
    ),
    Route(
        "POST", "/webhooks/{id}/signing-keys/{fingerprint}/start", "startSigningKey", "Let the next key sign now.",
        _ADMIN, signing_keys.start_key, Empty, Empty, models.SigningKeyList,
        path_parameters=_KEY, gives_version=True, error_statuses=frozenset({412, 422}),
    ),
    Route(
        "DELETE", "/webhooks/{id}/signing-keys/{fingerprint}", "removeSigningKey",
        "Erase the next or the previous key; its public key is withdrawn.", _ADMIN,
        signing_keys.remove_key, Empty, Empty, models.SigningKeyList,
        path_parameters=_KEY, gives_version=True, error_statuses=frozenset({412, 422}),
    ),
    Route(
        "GET", "/deleted-webhooks", "listDeletedWebhooks", "Deleted webhooks that can be restored.", _VIEWER,
        webhooks.list_deleted, Empty, Empty, models.DeletedWebhooks,
    ),
    Route(
        "POST", "/deleted-webhooks/{id}/restore", "restoreWebhook", "Undo the deletion of a webhook.", _ADMIN,
        webhooks.restore_webhook, Empty, Empty, models.Webhook,
        path_parameters=_WEBHOOK, gives_version=True, error_statuses=frozenset({409}),
    ),
    Route(
        "DELETE", "/deleted-webhooks/{id}", "eraseWebhook", "Erase a deleted webhook's secrets for good.", _ADMIN,
        webhooks.erase_webhook, Empty, Empty, None, 204, path_parameters=_WEBHOOK,
    ),
    Route(
        "POST", "/webhooks/{id}/test", "testWebhook", "Send a sample event on the real delivery path.", _ADMIN,
        testing.test_webhook, Empty, models.SampleEvent, model.TestResultModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/outcomes", "getOutcomes", "Counts of the attempts by outcome, over time.", _VIEWER,
        deliveries.get_outcomes, models.OutcomesQuery, Empty, models.OutcomesModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/attempts", "listAttempts", "The latest attempts.", _VIEWER,
        deliveries.list_attempts, models.AttemptList, Empty, models.AttemptPageModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/state", "getState", "The webhook's state by the evidence of all dispatchers.", _VIEWER,
        deliveries.get_state, Empty, Empty, models.StateModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/lane", "getLane", "The state of the webhook's lane.", _VIEWER,
        deliveries.get_lane, Empty, Empty, models.LaneAnswer, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/waiting", "getWaiting", "Events that wait for a retry.", _VIEWER,
        deliveries.get_waiting, Empty, Empty, models.WaitingModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/dead-events", "listDeadEvents", "Events that can't be delivered or were given up.", _VIEWER,
        dead_events.list_dead_events, models.DeadList, Empty, models.DeadEventPage,
    ),
    Route(
        "GET", "/dead-events/{id}", "getDeadEvent", "A dead event.", _VIEWER,
        dead_events.get_dead_event, Empty, Empty, model.DeadEventModel, path_parameters=_DEAD,
    ),
    Route(
        "GET", "/dead-events/{id}/record", "getDeadRecord", "The record of a dead event, an unreadable one too.",
        _ADMIN, dead_events.get_dead_record, Empty, Empty, models.DeadRecordModel,
        path_parameters=_DEAD, is_for_all_orgs=True,
    ),
    Route(
        "POST", "/dead-events/redrive", "redrive", "Send some or all of a tenant's dead events again.", _ADMIN,
        dead_events.redrive, Empty, models.RedriveOrder, RedriveModel, 202, error_statuses=frozenset({404, 409}),
    ),
    Route(
        "POST", "/webhooks/{id}/resend/check", "checkResend", "What a resend would send; nothing is sent.", _ADMIN,
        resend.check_resend, Empty, models.ResendRequest, models.ResendCheckModel, path_parameters=_WEBHOOK,
        error_statuses=frozenset({409}),
    ),
    Route(
        "POST", "/webhooks/{id}/resend", "resend", "Send delivered and dead events of a webhook again.", _ADMIN,
        resend.resend, Empty, models.ResendRequest, models.ResendJobs, 202, path_parameters=_WEBHOOK,
        error_statuses=frozenset({409}),
    ),
    Route(
        "GET", "/redrives", "listRedrives", "Jobs that send events again, running and finished.", _VIEWER,
        resend.list_redrives, models.RedriveList, Empty, models.RedrivePage,
    ),
    Route(
        "POST", "/redrives/{id}/stop", "stopRedrive", "Stop a job after its running batch.", _ADMIN,
        resend.stop_redrive, Empty, Empty, RedriveModel, path_parameters=_JOB,
    ),
    Route(
        "GET", "/redrives/{id}", "getRedrive", "Progress of a redrive.", _VIEWER,
        dead_events.get_redrive, Empty, Empty, RedriveModel, path_parameters=_JOB,
    ),
    Route(
        "POST", "/history/search", "searchHistory", "What happened to events: search by any id, page by page.", _VIEWER,
        history.search_history, Empty, models.HistorySearchOrder, models.HistoryPageModel,
        error_statuses=frozenset({404}),
    ),
    Route(
        "POST", "/history/erase", "eraseHistory", "Erase a person's entries from the history store.", _ADMIN,
        history.erase_history, Empty, models.Erasure, models.Erased,
        error_statuses=frozenset({404}), is_for_all_orgs=True,
    ),
    Route(
        "GET", "/webhooks/{id}/events/{event}/history", "getEventHistory", "Everything that happened to an event.",
        _VIEWER, history.get_event_history, Empty, Empty, models.EventHistory,
        path_parameters=_EVENT,
    ),
    Route(
        "GET", "/webhooks/{id}/counts", "getCounts", "What happened to a webhook's events, by reason.", _VIEWER,
        history.get_counts, models.SkippedQuery, Empty, models.CountsModel, path_parameters=_WEBHOOK,
    ),
    Route(
        "GET", "/webhooks/{id}/contacts", "listContacts", "The webhook's contacts and whether they confirmed.", _VIEWER,
        notifications.list_contacts, Empty, Empty, models.ContactList, path_parameters=_WEBHOOK,
    ),
    Route(
        "POST", "/webhooks/{id}/contacts/ask", "askContact", "Send the confirmation message to a contact again.",
        _ADMIN, notifications.ask_contact, Empty, models.ContactOrder, None, 204,
        path_parameters=_WEBHOOK, error_statuses=frozenset({429}),
    ),
    Route(
        "POST", "/webhooks/{id}/contacts/test", "testContacts", "Send a test to the webhook's confirmed contacts.",
        _ADMIN, notifications.test_contacts, Empty, Empty, models.SentTests, 202,
        path_parameters=_WEBHOOK, error_statuses=frozenset({429}),
    ),
    Route(
        "GET", "/notifications", "listNotifications", "Notifications that were sent or wait.", _VIEWER,
        notifications.list_notifications, models.NotificationList, Empty, models.NotificationPage,
        error_statuses=frozenset({404}),
    ),
    Route(
        "POST", "/notifications/test", "testOperator", "Send a test to the operator's addresses and webhook.", _ADMIN,
        notifications.test_operator, Empty, Empty, models.SentTests, 202,
        error_statuses=frozenset({404, 429}), is_for_all_orgs=True,
    ),
    Route(
        "GET", "/audit", "listAudit", "The audit log.", _VIEWER,
        people.list_audit, models.AuditList, Empty, models.AuditPage,
    ),
    Route(
        "GET", "/tokens", "listTokens", "Every token.", _ADMIN,
        people.list_tokens, Empty, Empty, models.TokenPage, is_for_all_orgs=True,
    ),
    Route(
        "POST", "/tokens", "createToken", "Create a token; its text is returned only once.", _ADMIN,
        people.create_token, Empty, models.NewToken, models.MadeToken, 201, is_for_all_orgs=True,
    ),
    Route(
        "DELETE", "/tokens/{id}", "revokeToken", "Revoke a token immediately.", _ADMIN,
        people.revoke_token, Empty, Empty, None, 204, path_parameters=_TOKEN, is_for_all_orgs=True,
    ),
)  # fmt: skip
