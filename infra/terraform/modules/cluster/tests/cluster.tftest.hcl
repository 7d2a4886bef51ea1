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
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-00000000000000000", latest_version = 1 }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:eu-central-1:123456789012:hardcase" }
  }
}

variables {
  vpc_id                   = "vpc-1"
  vpc_cidr                 = "10.10.0.0/16"
  node_subnet_ids          = { eu-central-1a = "subnet-a", eu-central-1b = "subnet-b", eu-central-1c = "subnet-c" }
  control_plane_subnet_ids = ["subnet-d", "subnet-e", "subnet-f"]
  admin_role_arns          = ["arn:aws:iam::123456789012:role/platform-admin"]
  kms_key_arn              = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  gpu_node_groups = {
    reserved = { instance_type = "p5.48xlarge", zone = "eu-central-1b", capacity = "CAPACITY_BLOCK", reservation = "cr-00000000000000000", efa = true }
    small    = { instance_type = "g6e.12xlarge", zone = "eu-central-1a", capacity = "SPOT", max = 2 }
  }
}

run "control_plane" {
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "The API is reached inside the VPC only."
  }
  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == var.kms_key_arn && aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"])
    error_message = "Secrets are encrypted by our key."
  }
  assert {
    condition     = aws_eks_cluster.this.enabled_cluster_log_types == toset(["api", "audit", "authenticator", "controllerManager", "scheduler"])
    error_message = "All logs of the control plane are kept."
  }
  assert {
    condition     = aws_cloudwatch_log_group.control_plane.kms_key_id == var.kms_key_arn && aws_cloudwatch_log_group.control_plane.retention_in_days == 365
    error_message = "Encrypted, for a year."
  }
  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API" && aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions == false
    error_message = "Access entries alone say who enters."
  }
  assert {
    condition     = aws_eks_access_policy_association.admin["arn:aws:iam::123456789012:role/platform-admin"].policy_arn == "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
    error_message = "Administrators are named."
  }
  assert {
    condition     = aws_eks_access_entry.karpenter_nodes.type == "EC2_LINUX"
    error_message = "Karpenter's nodes are let in."
  }
}

run "addons_are_pinned" {
  assert {
    condition     = toset(concat(keys(aws_eks_addon.early), keys(aws_eks_addon.late))) == toset(["vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent", "aws-ebs-csi-driver", "aws-efs-csi-driver"])
    error_message = "What docs/how-to/install-on-kubernetes.md assumes is there."
  }
  assert {
    condition     = jsondecode(aws_eks_addon.early["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "Without it no NetworkPolicy does anything."
  }
  assert {
    condition     = one(aws_eks_addon.early["vpc-cni"].pod_identity_association).service_account == "aws-node" && one(aws_eks_addon.late["aws-ebs-csi-driver"].pod_identity_association).service_account == "ebs-csi-controller-sa"
    error_message = "Add-ons that ask AWS for something have roles of their own, not the node's."
  }
}

run "nodes" {
  assert {
    condition     = aws_iam_role.node["karpenter"].name == "hardcase-node"
    error_message = "EC2NodeClasses name this role."
  }
  assert {
    condition     = aws_security_group.nodes.tags["karpenter.sh/discovery"] == "hardcase"
    error_message = "EC2NodeClasses find the group by this tag."
  }
  assert {
    condition = alltrue([
      for template in concat([aws_launch_template.system], values(aws_launch_template.gpu)) :
      template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1
    ])
    error_message = "IMDSv2, out of reach of pods."
  }
  assert {
    condition = alltrue(flatten([
      for template in concat([aws_launch_template.system], values(aws_launch_template.gpu)) :
      [for disk in template.block_device_mappings : disk.ebs[0].encrypted == "true" && disk.ebs[0].volume_type == "gp3"]
    ]))
    error_message = "Disks are gp3 and encrypted."
  }
  assert {
    condition     = aws_eks_node_group.system.ami_type == "BOTTLEROCKET_x86_64" && aws_eks_node_group.system.scaling_config[0].min_size == 2
    error_message = "Two nodes at least for Karpenter and CoreDNS."
  }
}

run "gpu_groups" {
  assert {
    condition     = aws_eks_node_group.gpu["reserved"].labels["hardcase.io/gpu-memory"] == "80gb" && aws_eks_node_group.gpu["small"].labels["hardcase.io/gpu-memory"] == "24gb"
    error_message = "Steps select by this label."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : one(group.taint).key == "nvidia.com/gpu" && one(group.taint).effect == "NO_SCHEDULE"])
    error_message = "Nothing else runs there."
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : group.scaling_config[0].desired_size == 0])
    error_message = "An apply pays for no GPU."
  }
  assert {
    condition     = aws_eks_node_group.gpu["reserved"].capacity_type == "CAPACITY_BLOCK" && aws_launch_template.gpu["reserved"].instance_market_options[0].market_type == "capacity-block"
    error_message = "A capacity block is used as one."
  }
  assert {
    condition     = length(aws_launch_template.gpu["reserved"].network_interfaces) == 32 && length(aws_launch_template.gpu["small"].network_interfaces) == 0
    error_message = "EFA on each card where it is asked for."
  }
  assert {
    condition     = aws_placement_group.gpu["reserved"].strategy == "cluster" && length(aws_placement_group.gpu) == 1
    error_message = "With EFA, close together."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.gpu["small"].user_data), "ephemeral-storage")
    error_message = "Containers lie on NVMe."
  }
}

run "interruptions_reach_karpenter" {
  assert {
    condition     = aws_sqs_queue.interruptions.name == "hardcase" && aws_sqs_queue.interruptions.kms_master_key_id == var.kms_key_arn
    error_message = "The queue is encrypted."
  }
  assert {
    condition     = length(aws_cloudwatch_event_target.interruption) == 5 && alltrue([for target in aws_cloudwatch_event_target.interruption : target.arn == aws_sqs_queue.interruptions.arn])
    error_message = "Spot, rebalance, state, health and capacity blocks."
  }
  assert {
    condition     = aws_eks_pod_identity_association.karpenter.namespace == "karpenter"
    error_message = "Karpenter has a role."
  }
}

run "an_unknown_gpu_type_is_refused" {
  command = plan
  variables {
    gpu_node_groups = { odd = { instance_type = "p6.48xlarge", zone = "eu-central-1a" } }
  }
  expect_failures = [var.gpu_node_groups]
}

run "a_zone_that_the_network_lacks_is_refused" {
  command = plan
  variables {
    gpu_node_groups = { odd = { instance_type = "p5.48xlarge", zone = "eu-central-1d" } }
  }
  expect_failures = [var.gpu_node_groups]
}

run "a_capacity_block_without_its_reservation_is_refused" {
  command = plan
  variables {
    gpu_node_groups = { odd = { instance_type = "p5.48xlarge", zone = "eu-central-1a", capacity = "CAPACITY_BLOCK" } }
  }
  expect_failures = [var.gpu_node_groups]
}

run "efa_where_there_is_none_is_refused" {
  command = plan
  variables {
    gpu_node_groups = { odd = { instance_type = "g6.12xlarge", zone = "eu-central-1a", efa = true } }
  }
  expect_failures = [var.gpu_node_groups]
}

run "the_whole_internet_is_refused" {
  command = plan
  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.public_access_cidrs]
}

run "a_cluster_without_administrators_is_refused" {
  command = plan
  variables {
    admin_role_arns = []
  }
  expect_failures = [var.admin_role_arns]
}

run "an_addon_that_is_not_pinned_is_refused" {
  command = plan
  variables {
    addon_versions = { vpc-cni = "latest", kube-proxy = "latest", coredns = "latest", eks-pod-identity-agent = "latest", aws-ebs-csi-driver = "latest", aws-efs-csi-driver = "latest" }
  }
  expect_failures = [var.addon_versions]
}

run "one_system_node_is_refused" {
  command = plan
  variables {
    system_nodes = { min = 1, max = 1 }
  }
  expect_failures = [var.system_nodes]
}

run "an_old_kubernetes_is_refused" {
  command = plan
  variables {
    kubernetes_version = "1.29"
  }
  expect_failures = [var.kubernetes_version]
}
