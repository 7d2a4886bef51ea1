# Add-ons of EKS. Those without which no node becomes ready come before the nodes, the others after them.

locals {
  addon_settings = {
    # Without it no NetworkPolicy does anything.
    vpc-cni = { enableNetworkPolicy = "true" }
    aws-ebs-csi-driver = {
      defaultStorageClass = { enabled = true }
    }
  }
  # Accounts of add-ons that ask AWS for something, and AWS's policy for it.
  addon_roles = {
    vpc-cni            = { account = "aws-node", policy = "AmazonEKS_CNI_Policy" }
    aws-ebs-csi-driver = { account = "ebs-csi-controller-sa", policy = "service-role/AmazonEBSCSIDriverPolicy" }
    aws-efs-csi-driver = { account = "efs-csi-controller-sa", policy = "service-role/AmazonEFSCSIDriverPolicy" }
  }
  early_addons = toset(["vpc-cni", "kube-proxy", "eks-pod-identity-agent"])
}

resource "aws_eks_addon" "early" {
  for_each                    = { for name, version in var.addon_versions : name => version if contains(local.early_addons, name) }
  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = each.value
  configuration_values        = try(jsonencode(local.addon_settings[each.key]), null)
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_roles), each.key) ? [1] : []
    content {
      role_arn        = aws_iam_role.addon[each.key].arn
      service_account = local.addon_roles[each.key].account
    }
  }
}

resource "aws_eks_addon" "late" {
  for_each                    = { for name, version in var.addon_versions : name => version if !contains(local.early_addons, name) }
  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = each.value
  configuration_values        = try(jsonencode(local.addon_settings[each.key]), null)
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  dynamic "pod_identity_association" {
    for_each = contains(keys(local.addon_roles), each.key) ? [1] : []
    content {
      role_arn        = aws_iam_role.addon[each.key].arn
      service_account = local.addon_roles[each.key].account
    }
  }
  depends_on = [aws_eks_node_group.system, aws_eks_addon.early]
}

resource "aws_iam_role" "addon" {
  for_each           = local.addon_roles
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.addon_trust[each.key].json
}

data "aws_iam_policy_document" "addon_trust" {
  for_each = local.addon_roles
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-namespace"
      values   = ["kube-system"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [each.value.account]
    }
  }
}

resource "aws_iam_role_policy_attachment" "addon" {
  for_each   = local.addon_roles
  role       = aws_iam_role.addon[each.key].name
  policy_arn = "${local.policy_arn}/${each.value.policy}"
}
