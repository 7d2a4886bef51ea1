# The bucket: versioned, encrypted by our key, TLS only, closed to the public, its accesses logged. Object Lock is on without
# a default retention: the register step locks ledger and dossiers version by version (register.retention_days).

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

locals {
  arn = "arn:${data.aws_partition.this.partition}:s3:::${var.bucket}"
}

resource "aws_s3_bucket" "data" {
  # checkov:skip=CKV2_AWS_62:nobody would listen; KFP and Airflow say when something is new
  # checkov:skip=CKV_AWS_144:a copy is a variable, replicate; prod has one
  bucket              = var.bucket
  object_lock_enabled = true
  force_destroy       = !var.protected
}

resource "aws_s3_bucket_versioning" "data" {
  bucket = aws_s3_bucket.data.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "data" {
  bucket = aws_s3_bucket.data.id
  rule {
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "data" {
  bucket                  = aws_s3_bucket.data.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "data" {
  bucket = aws_s3_bucket.data.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "data" {
  bucket     = aws_s3_bucket.data.id
  policy     = data.aws_iam_policy_document.data.json
  depends_on = [aws_s3_bucket_public_access_block.data]
}

data "aws_iam_policy_document" "data" {
  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.arn, "${local.arn}/*"]
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
  # An upload may name no other key; one that names none gets ours.
  statement {
    sid       = "OnlyOurKey"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${local.arn}/*"]
    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
    condition {
      test     = "Null"
      variable = "s3:x-amz-server-side-encryption-aws-kms-key-id"
      values   = ["false"]
    }
    condition {
      test     = "StringNotEquals"
      variable = "s3:x-amz-server-side-encryption-aws-kms-key-id"
      values   = [var.kms_key_arn]
    }
  }
}

resource "aws_s3_bucket_logging" "data" {
  bucket        = aws_s3_bucket.data.id
  target_bucket = aws_s3_bucket.access_logs.id
  target_prefix = "${var.bucket}/"
  # S3 refuses a target that its delivery may not write to.
  depends_on = [aws_s3_bucket_policy.access_logs]
}

# What is current under main/ never expires: hardcase store gc says what nobody needs.
resource "aws_s3_bucket_lifecycle_configuration" "data" {
  bucket = aws_s3_bucket.data.id

  rule {
    id     = "leftovers"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
  }
  rule {
    id     = "store"
    status = "Enabled"
    filter {
      prefix = "main/"
    }
    transition {
      days          = 30
      storage_class = "INTELLIGENT_TIERING"
    }
  }
  rule {
    id     = "runs"
    status = "Enabled"
    filter {
      prefix = "kfp/"
    }
    expiration {
      days = var.run_days
    }
  }
  rule {
    id     = "logs"
    status = "Enabled"
    filter {
      prefix = "airflow-logs/"
    }
    expiration {
      days = var.log_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.data]
}
