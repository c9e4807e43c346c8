"""The names that vendors and servers give to errors. Only these are shown: any other text in an error's `code` or
`type` may be anything, a key among them.

Read from: `openai` 3.54 `_exceptions.py` and platform.openai.com `guides/error-codes`; `anthropic` 2.12
`types/shared/error_type.py`; google.rpc `code.proto` and `google-genai` 3.4 `types.py` (`FinishReason`); `botocore`
1.44 `bedrock-runtime` (exceptions, stop reasons); `cohere` 7.3 `types/chat_finish_reason.py`; docs.mistral.ai
`errors`; `groq` 1.7; vLLM, SGLang, TGI and llama.cpp's server sources; DashScope's, Moonshot's, Cerebras', Azure's and
GitHub's pages of error codes; November 2026.
"""

from __future__ import annotations

import re

from andthen.contract.errors import tree

_NUMBER = re.compile(r"[0-9]{1,5}")
"""Statuses, and codes that are numbers (Mistral's, Z.AI's)."""

_OPENAI = """
    account_deactivated api_error authentication_error bad_gateway bad_request billing_error billing_hard_limit_reached
    billing_not_active conflict_error content_filter content_policy_violation context_length_exceeded
    decimal_above_max_value decimal_below_min_value empty_array engine_overloaded forbidden incorrect_api_key
    insufficient_quota integer_above_max_value integer_below_min_value internal_error internal_server_error
    invalid_api_key invalid_authentication invalid_json invalid_organization invalid_prompt invalid_request
    invalid_request_error invalid_type invalid_value ip_not_authorized json_parse_error max_tokens_exceeded
    mismatched_organization mismatched_project missing_required_parameter model_not_available model_not_found
    not_found not_found_error not_supported_error overloaded overloaded_error permission_denied permission_error
    project_not_found quota_exceeded rate_limit rate_limit_error rate_limit_exceeded rate_limited request_timeout
    request_too_large requests server_error service_unavailable service_unavailable_error slow_down
    string_above_max_length string_too_long timeout timeout_error tokens too_many_requests unauthorized unavailable
    unavailable_error unknown_error unknown_parameter unsupported_country_region_territory unsupported_model
    unsupported_parameter unsupported_value upstream_error validation_error
"""
_GOOGLE = """
    aborted already_exists api_key_invalid blocklist cancelled data_loss deadline_exceeded failed_precondition
    image_other image_prohibited_content image_recitation image_safety internal invalid_argument language
    malformed_function_call malformed_response max_tokens missing_thought_signature no_image other out_of_range
    prohibited_content pup_limited_disabled recitation resource_exhausted safety spii too_many_tool_calls
    unauthenticated unexpected_tool_call unimplemented unknown
"""
_AWS = """
    accessdeniedexception expiredtokenexception incompletesignatureexception internalfailure internalserverexception
    invalidsignatureexception malformed_model_output malformed_tool_use missingauthenticationtokenexception
    modelerrorexception modelnotreadyexception modelstreamerrorexception modeltimeoutexception
    resourcenotfoundexception servicequotaexceededexception serviceunavailableexception throttlingexception
    unrecognizedclientexception validationexception
"""
_SERVERS = """
    abort badrequesterror error error_limit error_toxic exceed_context_size_error generation generation_error
    incomplete_generation input_validation_error insufficient_system_resource internalservererror network_error
    notfounderror notimplementederror overloaded serviceunavailableerror toomanyrequests unprocessableentityerror
    user_cancel validation
"""
_OTHERS = """
    accessdenied arrearage badrequest capacity_exceeded content_filter_error data_inspection_failed
    datainspectionfailed deploymentnotfound engine_overloaded_error exceeded_current_quota_error
    incorrect_api_key_error insufficient_balance internalerror invalid_authentication_error invalid_model
    invalid_parameter_error invalid_request_invalid_args invalidapikey invalidparameter invalidrequest
    json_validate_failed limit_requests model.accessdenied model_decommissioned model_terms_required modelnotfound
    no_capacity notfound operationnotsupported organization_restricted permission_denied_error permissiondenied
    precondition_failed queue_exceeded rate_limit_reached_error ratelimitreached request_quota_exceeded
    resource_not_found_error responsibleaipolicyviolation service_tier_capacity_exceeded throttling
    throttling.allocationquota throttling.ratequota token_quota_exceeded tokens_limit_reached tool_use_failed
    too_many_requests_error unknown_model wrong_api_key
"""
_KNOWN = frozenset(
    [*"".join((_OPENAI, _GOOGLE, _AWS, _SERVERS, _OTHERS)).split()]
    + [name for kind in tree() for name in (kind.code, kind.type)]
)


def known(code: str) -> str:
    """The code, if it is one that vendors use, in whatever case; else nothing."""
    return code if code.lower() in _KNOWN or _NUMBER.fullmatch(code) else ""
