# Three keys of KMS: what the platform keeps (secrets, logs, database, images), what training keeps (the bucket), and the key
# that signs models, which never leaves KMS.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  arn = "arn:${data.aws_partition.this.partition}"
}

# The account's own policies say who may use a key.
data "aws_iam_policy_document" "account" {
  # checkov:skip=CKV_AWS_109:in a key's policy * is the key itself
  # checkov:skip=CKV_AWS_111:in a key's policy * is the key itself
  # checkov:skip=CKV_AWS_356:in a key's policy * is the key itself
  statement {
    sid       = "PoliciesOfTheAccount"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["${local.arn}:iam::${data.aws_caller_identity.this.account_id}:root"]
    }
  }
}

data "aws_iam_policy_document" "platform" {
  source_policy_documents = [data.aws_iam_policy_document.account.json]

  statement {
    sid       = "Logs"
    actions   = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.this.name}.amazonaws.com"]
    }
    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = ["${local.arn}:logs:${data.aws_region.this.name}:${data.aws_caller_identity.this.account_id}:*"]
    }
  }

  statement {
    sid       = "EventsAndNotices"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey*"]
    resources = ["*"]
    principals {
      type = "Service"
      identifiers = [
        "budgets.amazonaws.com", "cloudwatch.amazonaws.com", "costalerts.amazonaws.com", "events.amazonaws.com",
      ]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.this.account_id]
    }
  }
}

resource "aws_kms_key" "platform" {
  description             = "${var.name}: secrets, logs, database, images, queues"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.platform.json
}

resource "aws_kms_key" "artifacts" {
  description             = "${var.name}: snapshots, models, records"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.account.json
}

# ECDSA on P-256, which hardcase.provenance.signing takes; KMS rotates no asymmetric key by itself (docs/how-to/install-on-kubernetes.md, Day 2).
resource "aws_kms_key" "signing" {
  description              = "${var.name}: signs what models were made of"
  key_usage                = "SIGN_VERIFY"
  customer_master_key_spec = "ECC_NIST_P256"
  deletion_window_in_days  = 30
  policy                   = data.aws_iam_policy_document.account.json
}

resource "aws_kms_alias" "platform" {
  name          = "alias/${var.name}-platform"
  target_key_id = aws_kms_key.platform.key_id
}

resource "aws_kms_alias" "artifacts" {
  name          = "alias/${var.name}-artifacts"
  target_key_id = aws_kms_key.artifacts.key_id
}

resource "aws_kms_alias" "signing" {
  name          = "alias/${var.name}-signing"
  target_key_id = aws_kms_key.signing.key_id
}
