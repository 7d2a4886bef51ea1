mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }

}

variables {
  name = "hardcase"
}

run "keys" {
  assert {
    condition     = aws_kms_key.platform.enable_key_rotation && aws_kms_key.artifacts.enable_key_rotation
    error_message = "Keys that encrypt are changed each year."
  }
  assert {
    condition     = aws_kms_key.signing.key_usage == "SIGN_VERIFY" && aws_kms_key.signing.customer_master_key_spec == "ECC_NIST_P256"
    error_message = "hardcase signs by ECDSA on P-256 (securesystemslib's AWSSigner)."
  }
  assert {
    condition     = aws_kms_alias.signing.name == "alias/hardcase-signing"
    error_message = "infra/kubernetes names this alias."
  }
  assert {
    condition     = alltrue([for key in [aws_kms_key.platform, aws_kms_key.artifacts, aws_kms_key.signing] : key.deletion_window_in_days == 30])
    error_message = "A key deleted by mistake can be brought back for thirty days."
  }
}
