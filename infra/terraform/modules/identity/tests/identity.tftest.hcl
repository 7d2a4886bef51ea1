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

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/mocked" }
  }
}

variables {
  cluster_name      = "hardcase"
  bucket_arn        = "arn:aws:s3:::hardcase-prod"
  artifacts_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  signing_key_arn   = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  platform_key_arn  = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  secrets           = ["notify", "mlflow"]
}

run "a_role_for_each_account" {
  assert {
    condition     = toset(keys(aws_iam_role.workload)) == toset(keys(aws_eks_pod_identity_association.workload))
    error_message = "Each role is some pod's."
  }
  assert {
    condition     = alltrue([for account, each in aws_eks_pod_identity_association.workload : each.service_account == account && each.cluster_name == "hardcase"])
    error_message = "Of the account of its name."
  }
  assert {
    condition     = length(aws_iam_role.ci) == 0 && length(aws_iam_openid_connect_provider.ci) == 0
    error_message = "Nobody pushes from outside unless asked for."
  }
}

run "a_build_pushes_by_oidc" {
  variables {
    ci = { subjects = ["repo:acme/hardcase:ref:refs/heads/main"], repository_arns = ["arn:aws:ecr:eu-central-1:123456789012:repository/hardcase/mlflow"] }
  }
  assert {
    condition     = aws_iam_openid_connect_provider.ci["push"].url == "https://token.actions.githubusercontent.com" && aws_iam_role.ci["push"].max_session_duration == 3600
    error_message = "By a token, for an hour."
  }
}

run "secrets_are_encrypted_and_kept" {
  assert {
    condition     = alltrue([for each in aws_secretsmanager_secret.this : each.kms_key_id == var.platform_key_arn && each.recovery_window_in_days == 30 && startswith(each.name, "hardcase/")])
    error_message = "By our key, thirty days after deletion, below the prefix that external-secrets reads."
  }
}

run "anybodys_repository_is_refused" {
  command = plan
  variables {
    ci = { subjects = ["repo:*:ref:refs/heads/main"], repository_arns = [] }
  }
  expect_failures = [var.ci]
}

run "a_source_without_a_prefix_is_refused" {
  command = plan
  variables {
    sources = ["s3://acme-pictures"]
  }
  expect_failures = [var.sources]
}
