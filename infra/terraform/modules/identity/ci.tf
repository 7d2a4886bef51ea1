# A build that may push images, and nothing else, with a token of its own instead of a key that could leak.

locals {
  ci = var.ci == null ? {} : { push = var.ci }
}

resource "aws_iam_openid_connect_provider" "ci" {
  for_each       = local.ci
  url            = each.value.issuer
  client_id_list = [each.value.audience]
}

resource "aws_iam_role" "ci" {
  for_each             = local.ci
  name                 = "${var.name}-ci"
  max_session_duration = 3600
  assume_role_policy   = data.aws_iam_policy_document.ci_trust[each.key].json
}

data "aws_iam_policy_document" "ci_trust" {
  for_each = local.ci
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.ci[each.key].arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${trimprefix(each.value.issuer, "https://")}:aud"
      values   = [each.value.audience]
    }
    condition {
      test     = "StringLike"
      variable = "${trimprefix(each.value.issuer, "https://")}:sub"
      values   = each.value.subjects
    }
  }
}

resource "aws_iam_role_policy" "ci" {
  for_each = local.ci
  name     = "push"
  role     = aws_iam_role.ci[each.key].id
  policy   = data.aws_iam_policy_document.ci[each.key].json
}

data "aws_iam_policy_document" "ci" {
  for_each = local.ci
  statement {
    sid       = "LogIn"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }
  statement {
    sid = "Push"
    actions = [
      "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload", "ecr:DescribeImages",
      "ecr:GetDownloadUrlForLayer", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
    ]
    resources = each.value.repository_arns
  }
}
