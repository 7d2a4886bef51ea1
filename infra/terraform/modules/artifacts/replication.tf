# On request, a copy of the store and of MLflow's files in another region, locked as the first is. Deletions are not copied.

locals {
  replicas = var.replicate ? { copy = "${var.bucket}-replica" } : {}
}

resource "aws_s3_bucket" "replica" {
  # checkov:skip=CKV2_AWS_62:nobody would listen; KFP and Airflow say when something is new
  # checkov:skip=CKV_AWS_144:it is the copy
  # checkov:skip=CKV_AWS_18:nobody reads the copy until the original is lost
  for_each            = local.replicas
  provider            = aws.replica
  bucket              = each.value
  object_lock_enabled = true
  force_destroy       = !var.protected
}

resource "aws_s3_bucket_versioning" "replica" {
  for_each = local.replicas
  provider = aws.replica
  bucket   = aws_s3_bucket.replica[each.key].id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_kms_key" "replica" {
  for_each                = local.replicas
  provider                = aws.replica
  description             = "${var.bucket}: the copy"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.replica_key.json
}

data "aws_iam_policy_document" "replica_key" {
  # checkov:skip=CKV_AWS_109:in a key's policy * is the key itself
  # checkov:skip=CKV_AWS_111:in a key's policy * is the key itself
  # checkov:skip=CKV_AWS_356:in a key's policy * is the key itself
  statement {
    sid       = "PoliciesOfTheAccount"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}:root"]
    }
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "replica" {
  for_each = local.replicas
  provider = aws.replica
  bucket   = aws_s3_bucket.replica[each.key].id
  rule {
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.replica[each.key].arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "replica" {
  for_each                = local.replicas
  provider                = aws.replica
  bucket                  = aws_s3_bucket.replica[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_policy" "replica" {
  for_each   = local.replicas
  provider   = aws.replica
  bucket     = aws_s3_bucket.replica[each.key].id
  policy     = data.aws_iam_policy_document.replica.json
  depends_on = [aws_s3_bucket_public_access_block.replica]
}

data "aws_iam_policy_document" "replica" {
  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = ["${local.arn}-replica", "${local.arn}-replica/*"]
    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "replica" {
  for_each = local.replicas
  provider = aws.replica
  bucket   = aws_s3_bucket.replica[each.key].id
  rule {
    id     = "leftovers"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
  depends_on = [aws_s3_bucket_versioning.replica]
}

resource "aws_s3_bucket_replication_configuration" "data" {
  for_each = local.replicas
  bucket   = aws_s3_bucket.data.id
  role     = aws_iam_role.replication[each.key].arn

  dynamic "rule" {
    for_each = { main = 1, mlflow = 2 }
    content {
      id       = rule.key
      status   = "Enabled"
      priority = rule.value
      filter {
        prefix = "${rule.key}/"
      }
      delete_marker_replication {
        status = "Disabled"
      }
      source_selection_criteria {
        sse_kms_encrypted_objects {
          status = "Enabled"
        }
      }
      destination {
        bucket = aws_s3_bucket.replica[each.key].arn
        encryption_configuration {
          replica_kms_key_id = aws_kms_key.replica[each.key].arn
        }
      }
    }
  }
  depends_on = [aws_s3_bucket_versioning.data, aws_s3_bucket_versioning.replica]
}

resource "aws_iam_role" "replication" {
  for_each           = local.replicas
  name               = "${var.bucket}-replication"
  assume_role_policy = data.aws_iam_policy_document.replication_trust.json
}

data "aws_iam_policy_document" "replication_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.this.account_id]
    }
  }
}

resource "aws_iam_role_policy" "replication" {
  for_each = local.replicas
  name     = "copy"
  role     = aws_iam_role.replication[each.key].id
  policy   = data.aws_iam_policy_document.replication[each.key].json
}

data "aws_iam_policy_document" "replication" {
  for_each = local.replicas
  statement {
    actions   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    resources = [local.arn]
  }
  statement {
    actions = [
      "s3:GetObjectVersionForReplication", "s3:GetObjectVersionAcl", "s3:GetObjectVersionTagging", "s3:GetObjectRetention",
      "s3:GetObjectLegalHold",
    ]
    resources = ["${local.arn}/*"]
  }
  statement {
    actions   = ["s3:ReplicateObject", "s3:ReplicateTags"]
    resources = ["${local.arn}-replica/*"]
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]
  }
  statement {
    actions   = ["kms:Encrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.replica[each.key].arn]
  }
}
